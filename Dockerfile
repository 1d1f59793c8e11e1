# The shop: `docker build .` is `tidemark`, all of it or one part by its subcommand. `--target pgbouncer` is the pooler
# of docker-compose.yml.

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
  && apt-get install -y --no-install-recommends build-essential pkg-config libssl-dev zlib1g-dev \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build/target \
  cargo build --release --locked -p tidemark && install -s target/release/tidemark /usr/local/bin/tidemark \
  && scripts/sbom /usr/local/share/tidemark/sbom.json

FROM debian:12.11-slim AS pgbouncer
RUN apt-get update \
  && apt-get install -y --no-install-recommends pgbouncer \
  && rm -rf /var/lib/apt/lists/* \
  && useradd --system --uid 10001 tidemark
USER 10001
HEALTHCHECK --interval=5s --timeout=2s --start-period=10s --retries=3 \
  CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/6432"]

FROM debian:12.11-slim AS tidemark
RUN apt-get update \
  && apt-get install -y --no-install-recommends libssl3 zlib1g ca-certificates \
  && rm -rf /var/lib/apt/lists/* \
  && useradd --system --uid 10001 tidemark
COPY --from=build /usr/local/bin/tidemark /usr/local/bin/tidemark
COPY --from=build /usr/local/share/tidemark/sbom.json /usr/local/share/tidemark/sbom.json
USER 10001
ENV TIDEMARK_LISTEN=0.0.0.0:8080
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
  CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080; printf 'GET /readyz HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3; read -r _ status _ <&3; [ \"$status\" = 200 ]"]
ENTRYPOINT ["tidemark"]
CMD ["--help"]
