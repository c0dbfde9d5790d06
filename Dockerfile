# syntax=docker/dockerfile:1

# The base, by tag; for a build that can be repeated give its digest too:
#   --build-arg BASE=docker.io/library/python:3.11-slim-bookworm@sha256:<digest>
# Any Debian with Python 3.11 or newer and its venv module does.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
ARG LAMBDA_ADAPTER=public.ecr.aws/awsguru/aws-lambda-adapter:0.9.1
ARG ENABLE_LAMBDA_ADAPTER=false

# --- what is installed: the locked packages, each checked against its hash, and the wheel of this tree
FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ONLY_BINARY=:all:
WORKDIR /build
COPY requirements/ requirements/
RUN python3 -m venv /opt/picoclaw \
 && /opt/picoclaw/bin/pip install --quiet --no-compile --require-hashes --no-deps -r requirements/runtime.lock \
 && python3 -m venv /wheel \
 && /wheel/bin/pip install --quiet --no-compile --require-hashes --no-deps -r requirements/build.lock
COPY pyproject.toml LICENSE README.md ./
COPY host/ host/
COPY mcp_server/ mcp_server/
COPY shared/ shared/
# Bytecode is made here, once, and believed without a look at its source: the image never changes.
RUN /wheel/bin/python -c "from hatchling.build import build_wheel; build_wheel('/wheel')" \
 && /opt/picoclaw/bin/pip install --quiet --no-compile --no-deps --no-index /wheel/*.whl \
 && /opt/picoclaw/bin/pip uninstall --quiet --yes pip setuptools 2>/dev/null \
 && /opt/picoclaw/bin/python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /opt/picoclaw/lib

# --- the Lambda adapter, or nothing: ENABLE_LAMBDA_ADAPTER (true, 1, false, 0) chooses the stage
FROM ${BASE} AS adapter-false
RUN mkdir /extensions

FROM ${LAMBDA_ADAPTER} AS adapter-image

FROM ${BASE} AS adapter-true
COPY --from=adapter-image /lambda-adapter /extensions/lambda-adapter

FROM adapter-false AS adapter-0
FROM adapter-true AS adapter-1
FROM adapter-${ENABLE_LAMBDA_ADAPTER} AS adapter

# --- the image
FROM ${BASE}
ARG EXTRA_PACKAGES=""
# picoclaw-sandbox is who commands run as when the host is started as root (docs/sandbox.md).
RUN useradd --uid 1000 --user-group --home-dir /data --no-create-home --shell /usr/sbin/nologin picoclaw \
 && useradd --uid 61900 --key UID_MAX=61900 --user-group --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin \
      picoclaw-sandbox \
 && install -d -o picoclaw -g picoclaw /data /data/memory /data/principals /data/store /data/org \
 && if [ -n "$EXTRA_PACKAGES" ]; then \
      apt-get update -qq \
      && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $EXTRA_PACKAGES \
      && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*; \
    fi
COPY --from=adapter /extensions/ /opt/extensions/
COPY --from=build /opt/picoclaw/ /opt/picoclaw/
COPY deploy/image/healthcheck.py /opt/picoclaw/share/healthcheck.py
COPY supervisord.conf /etc/picoclaw/supervisord.conf

ARG BUILD_VERSION=0.1.0
ARG BUILD_COMMIT=unknown
ARG BUILD_TIME=unknown
LABEL org.opencontainers.image.title="PicoClaw" \
      org.opencontainers.image.description="A self-hosted agent host: conversations that persist, tools in a kernel sandbox, tasks that run once" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${BUILD_VERSION}" \
      org.opencontainers.image.revision="${BUILD_COMMIT}" \
      org.opencontainers.image.created="${BUILD_TIME}"
ENV PATH=/opt/picoclaw/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    PORT=9000 \
    HOME=/tmp \
    PICOCLAW_HOME=/data \
    STORE_DIR=/data/store \
    MEMORY_DIR=/data/memory \
    ORG_DIR=/data/org \
    LOCAL_DB_PATH=/tmp/picoclaw/picoclaw.db \
    STOP_WAIT_SECONDS=40 \
    TICK=false \
    TICK_SECONDS=60 \
    APP_VERSION=${BUILD_VERSION} \
    BUILD_COMMIT=${BUILD_COMMIT} \
    BUILD_TIME=${BUILD_TIME}

USER 1000:1000
WORKDIR /data
VOLUME ["/data/memory", "/data/principals", "/data/store"]
EXPOSE 9000
STOPSIGNAL SIGTERM
# The start copies the store to the local disk: until it first answers, it may take an hour.
HEALTHCHECK --interval=30s --timeout=5s --start-period=3600s --retries=3 \
  CMD ["/opt/picoclaw/bin/python", "-IS", "/opt/picoclaw/share/healthcheck.py"]
CMD ["picoclaw", "supervise"]
