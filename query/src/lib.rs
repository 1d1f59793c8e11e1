//! tidemark-query
