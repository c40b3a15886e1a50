# vLLM engines under Baton's supervisor.
#
#   docker build -f docker/engine.Dockerfile -t baton-engine .
#
# Without GPUs, vLLM's CPU build is installed on a plain Python:
#
#   docker build -f docker/engine.Dockerfile -t baton-engine-cpu \
#     --build-arg BASE=python:3.12-slim-bookworm --build-arg ENGINES=cpu .
ARG BASE=vllm/vllm-openai:v0.32.0

FROM ${BASE}
USER root
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG TORCH_CPU_INDEX
# none: the base has vLLM; cpu: it gets vLLM's CPU build
ARG ENGINES=none
ARG NIXL=nixl>=1.0
WORKDIR /src
# A Python of its own that sees what the base has installed: the base's vLLM stays as it is.
RUN python3 -m venv --system-site-packages /opt/baton
COPY pyproject.toml docker/requirements.py engines/install.py ./
RUN --mount=type=cache,target=/root/.cache/pip export PIP_DISABLE_PIP_VERSION_CHECK=1 \
 && if [ "$ENGINES" = cpu ]; then /opt/baton/bin/python install.py; fi \
 && python3 requirements.py > requirements.txt && /opt/baton/bin/pip install -q -r requirements.txt \
 && if /opt/baton/bin/python -c 'import vllm' 2>/dev/null; then \
      /opt/baton/bin/python -c 'import nixl' 2>/dev/null || /opt/baton/bin/pip install -q "$NIXL"; \
    fi
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip /opt/baton/bin/pip install -q --no-deps . && rm -rf /src/*
COPY --chmod=755 docker/healthy.py /opt/baton/bin/healthy
COPY --chmod=755 docker/start.py /opt/baton/bin/start
# Volumes that are mounted here belong to whom the folders belong to.
RUN install -d -o 10001 -g 10001 /models /run/baton
# What vLLM, Triton and torch compile and cache goes to /tmp, the one place that can be written.
ENV PATH=/opt/baton/bin:${PATH} \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp XDG_CACHE_HOME=/tmp/cache VLLM_CACHE_ROOT=/tmp/cache/vllm TRITON_CACHE_DIR=/tmp/cache/triton \
    USER=baton HF_HOME=/models BATON_STATE_DIR=/tmp/baton
WORKDIR /tmp
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m CMD ["healthy", "/run/baton/fleet.toml"]
ENTRYPOINT ["start"]
CMD ["/etc/baton/fleet.toml", "baton", "engines", "up", "/run/baton/fleet.toml"]
