//! tidemark-projector
