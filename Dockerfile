# Vedette's images: one target each, `agent`, `detector`, `operator`. docs/development/images.md tells how and why.
#
#   docker build --target agent -t vedette-agent .
#
# Every image starts from nothing and holds four layers: the distribution's Python with the libraries it needs, the
# Python packages of others, Vedette's own, and the users. No shell, no package manager, no compiler, nothing setuid.
# Only features that BuildKit, podman and buildah share are used.
ARG BASE_IMAGE=debian:bookworm-slim

# ---- tools: what builds the rest -----------------------------------------------------------------------------------

FROM ${BASE_IMAGE} AS tools
ARG SOURCE_DATE_EPOCH=0
ARG UV_VERSION=0.13.9
ARG SETUPTOOLS_VERSION=84.2.1
# A mirror in between sometimes answers with rubbish and is well a few seconds later.
RUN for attempt in 1 2 3 4; do \
      apt-get -q update \
      && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends \
           ca-certificates gcc libbpf1 libc6-dev libcap2-bin libstdc++6 linux-libc-dev python3 python3-dev python3-venv tzdata \
      && break; \
      [ "$attempt" -lt 4 ] || exit 1; sleep $((attempt * 5)); \
    done \
    && rm -rf /var/lib/apt/lists/*
# The secret is the certificate bundle of a machine behind a proxy that inspects TLS; without it the system's is used.
RUN --mount=type=secret,id=ca-bundle,target=/run/ca-bundle.pem \
    if [ -s /run/ca-bundle.pem ]; then export PIP_CERT=/run/ca-bundle.pem; fi \
    && python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --quiet --no-cache-dir --disable-pip-version-check --retries 8 \
         uv==${UV_VERSION} setuptools==${SETUPTOOLS_VERSION}
ENV UV_PYTHON=/usr/bin/python3 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_NO_CACHE=1 UV_HTTP_TIMEOUT=120 \
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} PATH=/opt/tools/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /src

# ---- packages of others, as uv.lock names them ---------------------------------------------------------------------

# Lists with hashes, taken from the lock file: what else changes in it or in a pyproject.toml costs no image a layer.
FROM tools AS requirements
COPY pyproject.toml uv.lock ./
COPY events/pyproject.toml events/
COPY agent/pyproject.toml agent/
COPY detector/pyproject.toml detector/
COPY operator/pyproject.toml operator/
COPY cli/pyproject.toml cli/
# The detector's image holds the command `vedette` too, which knows every part.
RUN mkdir /requirements \
    && export="uv export --quiet --frozen --no-dev --no-emit-workspace --no-header --no-annotate" \
    && $export --package vedette-agent --output-file /requirements/agent.txt \
    && $export --package vedette-operator --extra controller --output-file /requirements/operator.txt \
    && $export --all-packages --all-extras --no-extra controller --output-file /requirements/detector.txt

FROM tools AS agent-packages
COPY tools/images/tidy.py /opt/tools/
COPY --from=requirements /requirements/agent.txt /src/
RUN --mount=type=secret,id=ca-bundle,target=/run/ca-bundle.pem \
    if [ -s /run/ca-bundle.pem ]; then export SSL_CERT_FILE=/run/ca-bundle.pem; fi \
    && uv venv --quiet /opt/vedette \
    && uv pip install --quiet --require-hashes --only-binary :all: --python /opt/vedette/bin/python --requirements agent.txt \
    && /opt/vedette/bin/python /opt/tools/tidy.py /opt/vedette

FROM tools AS detector-packages
COPY tools/images/tidy.py /opt/tools/
COPY --from=requirements /requirements/detector.txt /src/
RUN --mount=type=secret,id=ca-bundle,target=/run/ca-bundle.pem \
    if [ -s /run/ca-bundle.pem ]; then export SSL_CERT_FILE=/run/ca-bundle.pem; fi \
    && uv venv --quiet /opt/vedette \
    && uv pip install --quiet --require-hashes --only-binary :all: --python /opt/vedette/bin/python --requirements detector.txt \
    && /opt/vedette/bin/python /opt/tools/tidy.py /opt/vedette

FROM tools AS operator-packages
COPY tools/images/tidy.py /opt/tools/
COPY --from=requirements /requirements/operator.txt /src/
RUN --mount=type=secret,id=ca-bundle,target=/run/ca-bundle.pem \
    if [ -s /run/ca-bundle.pem ]; then export SSL_CERT_FILE=/run/ca-bundle.pem; fi \
    && uv venv --quiet /opt/vedette \
    && uv pip install --quiet --require-hashes --only-binary :all: --python /opt/vedette/bin/python --requirements operator.txt \
    && /opt/vedette/bin/python /opt/tools/tidy.py /opt/vedette

# ---- what is compiled -----------------------------------------------------------------------------------------------

FROM tools AS bpf-tools
RUN for attempt in 1 2 3 4; do \
      apt-get -q update \
      && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends clang libbpf-dev llvm \
      && break; \
      [ "$attempt" -lt 4 ] || exit 1; sleep $((attempt * 5)); \
    done \
    && rm -rf /var/lib/apt/lists/*

FROM bpf-tools AS bpf
COPY agent/vedette_agent/__init__.py agent/vedette_agent/bpf_build.py /src/vedette_agent/
COPY agent/vedette_agent/bpf /src/vedette_agent/bpf
RUN python3 -B -m vedette_agent.bpf_build --force

FROM tools AS launcher
COPY agent/launcher/launcher.c ./
RUN gcc -Os -static -s -std=c11 -Wall -Wextra -Werror -Wl,--build-id=none -o vedette-agent launcher.c \
    && touch -d "@${SOURCE_DATE_EPOCH}" vedette-agent \
    && setcap cap_bpf,cap_perfmon,cap_net_admin,cap_sys_ptrace=p vedette-agent

# ---- Vedette's own packages -----------------------------------------------------------------------------------------

FROM tools AS events-wheel
COPY events /src/events
RUN uv build --quiet --offline --wheel --no-build-isolation --python /opt/tools/bin/python --out-dir /wheels events

FROM tools AS agent-wheel
COPY agent /src/agent
COPY --from=bpf /src/vedette_agent/bpf/vedette.bpf.o /src/vedette_agent/bpf/vedette.base.bpf.o /src/agent/vedette_agent/bpf/
RUN uv build --quiet --offline --wheel --no-build-isolation --python /opt/tools/bin/python --out-dir /wheels agent

FROM tools AS other-wheels
COPY templates /src/templates
COPY operator /src/operator
COPY detector /src/detector
COPY cli /src/cli
RUN for part in operator detector cli; do \
      uv build --quiet --offline --wheel --no-build-isolation --python /opt/tools/bin/python --out-dir /wheels $part || exit 1; \
    done

# Installed into an environment of their own, in the place where the image has it, so that they make a layer of their own.
FROM tools AS agent-own
COPY tools/images/tidy.py /opt/tools/
COPY --from=events-wheel /wheels /wheels
COPY --from=agent-wheel /wheels /wheels
RUN uv venv --quiet /opt/vedette && uv pip install --quiet --offline --no-deps --python /opt/vedette/bin/python /wheels/*.whl \
    && /opt/vedette/bin/python /opt/tools/tidy.py /opt/vedette

FROM tools AS detector-own
COPY tools/images/tidy.py /opt/tools/
COPY --from=events-wheel /wheels /wheels
COPY --from=agent-wheel /wheels /wheels
COPY --from=other-wheels /wheels /wheels
RUN uv venv --quiet /opt/vedette && uv pip install --quiet --offline --no-deps --python /opt/vedette/bin/python /wheels/*.whl \
    && /opt/vedette/bin/python /opt/tools/tidy.py /opt/vedette

FROM tools AS operator-own
COPY tools/images/tidy.py /opt/tools/
COPY --from=other-wheels /wheels /wheels
RUN uv venv --quiet /opt/vedette \
    && uv pip install --quiet --offline --no-deps --python /opt/vedette/bin/python /wheels/vedette_operator-*.whl \
    && /opt/vedette/bin/python /opt/tools/tidy.py /opt/vedette

# ---- root file systems ----------------------------------------------------------------------------------------------

FROM tools AS agent-root
COPY tools/images/root.py tools/images/tidy.py /opt/tools/
RUN python3 /opt/tools/root.py /image python3-minimal libpython3-stdlib 'libbpf1|libbpf1t64' coreutils=/usr/bin/chown \
    && mkdir -p /image/var/lib/vedette/agent && chown 60700:60700 /image/var/lib/vedette/agent \
    && python3 /opt/tools/tidy.py /image /image

FROM tools AS detector-root
COPY tools/images/root.py tools/images/tidy.py /opt/tools/
RUN python3 /opt/tools/root.py /image python3-minimal libpython3-stdlib libstdc++6 tzdata \
    && mkdir -p /image/var/lib/vedette/detector /image/run/vedette /image/etc/vedette \
    && chown 60701:60701 /image/var/lib/vedette/detector /image/run/vedette \
    && python3 /opt/tools/tidy.py /image /image

FROM tools AS operator-root
COPY tools/images/root.py tools/images/tidy.py /opt/tools/
RUN python3 /opt/tools/root.py /image python3-minimal libpython3-stdlib tzdata && python3 /opt/tools/tidy.py /image /image

# ---- the images -----------------------------------------------------------------------------------------------------

FROM scratch AS agent
COPY --from=agent-root /image /
COPY --from=agent-packages /opt/vedette /opt/vedette
COPY --from=agent-own /opt/vedette /opt/vedette
COPY --from=launcher /src/vedette-agent /usr/local/bin/vedette-agent
ENV PATH=/usr/local/bin:/opt/vedette/bin:/usr/bin
USER 60700:60700
# The container's first program must be this one: it hands the capabilities on (agent/launcher/launcher.c).
ENTRYPOINT ["/usr/local/bin/vedette-agent"]
CMD ["--pin-dir", ""]
LABEL org.opencontainers.image.title="vedette-agent" \
      org.opencontainers.image.description="Vedette's agent: watches a node through eBPF" \
      org.opencontainers.image.licenses="Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)"
ARG REVISION=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.revision=${REVISION} org.opencontainers.image.version=${VERSION}

FROM scratch AS detector
COPY --from=detector-root /image /
COPY --from=detector-packages /opt/vedette /opt/vedette
COPY --from=detector-own /opt/vedette /opt/vedette
# Data and socket are where detector and command both look without being told.
ENV PATH=/opt/vedette/bin:/usr/bin HOME=/tmp
USER 60701:60701
ENTRYPOINT ["/opt/vedette/bin/python3", "-m", "vedette_detector"]
LABEL org.opencontainers.image.title="vedette-detector" \
      org.opencontainers.image.description="Vedette's detector and the command vedette" \
      org.opencontainers.image.licenses="Apache-2.0"
ARG REVISION=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.revision=${REVISION} org.opencontainers.image.version=${VERSION}

FROM scratch AS operator
COPY --from=operator-root /image /
COPY --from=operator-packages /opt/vedette /opt/vedette
COPY --from=operator-own /opt/vedette /opt/vedette
ENV PATH=/opt/vedette/bin:/usr/bin HOME=/tmp
USER 60702:60702
ENTRYPOINT ["/opt/vedette/bin/python3", "-m", "vedette_operator"]
LABEL org.opencontainers.image.title="vedette-operator" \
      org.opencontainers.image.description="Vedette's operator: deploys, repairs and removes agents and detector" \
      org.opencontainers.image.licenses="Apache-2.0"
ARG REVISION=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.revision=${REVISION} org.opencontainers.image.version=${VERSION}
