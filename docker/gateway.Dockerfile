# The gateway and the engine doubles: no torch, no vLLM, not root, nothing to write outside of /tmp.
#
#   docker build -f docker/gateway.Dockerfile -t baton-gateway .
#
# PIP_INDEX_URL and PIP_EXTRA_INDEX_URL as --build-arg if packages come from elsewhere than PyPI. The hot path is compiled
# (gcc, a minute or two); --build-arg NATIVE=0 leaves it out, at about 1.5 times the CPU per request.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/baton
ARG NATIVE=1
# Debian's Python has its headers in a package, Docker's has them with it.
RUN if [ "$NATIVE" = 1 ]; then \
      python3 -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null || more=python3-dev; \
      apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev $more >/dev/null; \
    fi
WORKDIR /src
COPY pyproject.toml docker/requirements.py ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 requirements.py > requirements.txt && /opt/baton/bin/pip install -q -r requirements.txt \
 && if [ "$NATIVE" = 1 ]; then \
      python3 requirements.py native > native.txt && /opt/baton/bin/pip install -q --target /opt/native -r native.txt; \
    fi
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/baton/bin/pip install -q --no-deps . \
 && if [ "$NATIVE" = 1 ]; then PYTHONPATH=/opt/native LDFLAGS=-s /opt/baton/bin/baton native; fi \
 && /opt/baton/bin/pip uninstall -qy hf-xet setuptools pip

FROM ${BASE}
COPY --from=build /opt/baton /opt/baton
COPY --chmod=755 docker/healthy.py /opt/baton/bin/healthy
COPY --chmod=755 docker/preflight.py /opt/baton/bin/preflight
COPY --chmod=755 docker/start.py /opt/baton/bin/start
COPY docker/sim /opt/sim
# Volumes that are mounted here belong to whom the folders belong to.
RUN install -d -o 10001 -g 10001 /models /run/baton
ENV PATH=/opt/baton/bin:${PATH} \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp HF_HOME=/models \
    BATON_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["healthy", "http://127.0.0.1:8000/readyz"]
ENTRYPOINT ["baton"]
CMD ["serve"]
