# For pods that the tests attack from: what tools/attacks runs inside containers. Not for any other use.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}
ARG PACKAGES
RUN dpkg-query -W ${PACKAGES} >/dev/null 2>&1 || { \
      for attempt in 1 2 3 4; do \
        apt-get -q update \
        && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends ${PACKAGES} && break; \
        [ "$attempt" -lt 4 ] || exit 1; sleep $((attempt * 5)); \
      done; \
      rm -rf /var/lib/apt/lists/*; }
COPY programs /
CMD ["sleep", "infinity"]
LABEL org.opencontainers.image.title="vedette-attacks" \
      org.opencontainers.image.description="Harmless attack simulations, for tests"
