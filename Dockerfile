# For CPUs, or with TORCH_BACKEND="" for GPUs, too; docs/container.md says how to build and run it.

# For amd64 and arm64. Any Linux with Python 3.11 or newer as `python3`, its venv module, and certificates. 3.11 is what the locked versions
# are tested with.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm


FROM ${BASE_IMAGE} AS build

# Which build of torch: cpu, cu130 …, from PyTorch's own index, which uv knows by this name. Empty: from where everything
# else comes; there its Linux build is the one for CUDA, which runs without a GPU, too.
ARG TORCH_BACKEND=cpu
# An index that torch alone comes from, in place of PyTorch's own.
ARG TORCH_INDEX_URL=""

RUN groupadd --gid 10001 rnn \
 && useradd --uid 10001 --gid rnn --no-create-home --home-dir /tmp --shell /usr/sbin/nologin rnn \
 && python3 -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /app

# pip's configuration comes as a secret: it may hold passwords, and no layer keeps it.
# torch by itself and first: it is by far the largest, changes least, and its own index need not have anything else.
COPY constraints.txt ./
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=cache,target=/root/.cache \
    if [ -n "$TORCH_BACKEND" ] && [ -z "$TORCH_INDEX_URL" ]; then \
        pip install --constraint constraints.txt uv \
     && uv pip install --python /venv/bin/python --compile-bytecode --no-deps --constraint constraints.txt \
            --torch-backend "$TORCH_BACKEND" torch \
     && pip uninstall --yes uv; \
    else \
        pip install --no-deps --constraint constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch; \
    fi

# With traces (docs/tracing.md). Editable, so that the code stays beside docs/ and changes without this layer.
COPY pyproject.toml README.md LICENSE ./
COPY service/__init__.py ./service/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=cache,target=/root/.cache \
    pip install --constraint constraints.txt --editable '.[otel]' \
 && pip check \
 && pip uninstall --yes pip

# The bill of materials, by a tool that does not go into the image.
COPY scripts/sbom.py ./scripts/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=cache,target=/root/.cache \
    python3 -m venv /sbom \
 && /sbom/bin/pip install --constraint constraints.txt cyclonedx-bom packaging \
 && /sbom/bin/python scripts/sbom.py /venv/bin/python sbom.cdx.json otel \
 && rm -r scripts

# What nothing reads when models are served: torch's C++ headers and test programs (`import torch` asks for
# torch_shm_manager), and the tests of sympy.
RUN cd /venv/lib/python3*/site-packages \
 && rm -rf torch/include torch/test \
 && find torch/bin -type f -not -name torch_shm_manager -delete \
 && find sympy -type d -name tests -prune -exec rm -r {} +

COPY service ./service
COPY docs/problems ./docs/problems
COPY models ./models
# Nothing can be compiled later, in a read-only container.
RUN python -m compileall -q --invalidation-mode unchecked-hash service


FROM ${BASE_IMAGE}

ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="rnn-service" \
      org.opencontainers.image.description="Inference microservice for recurrent networks" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

COPY --from=build /etc/passwd /etc/group /etc/
COPY --from=build /venv /venv
COPY --from=build /app /app
COPY models /models
# For RNN_SESSION_STORE=sqlite:////sessions/sessions.db; a new named volume over it takes over its owner.
RUN install --directory --owner=10001 --group=10001 --mode=0700 /sessions

ENV PATH=/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RNN_HOST=0.0.0.0 \
    RNN_PORT=8000 \
    RNN_MODELS=/models
WORKDIR /app
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM

HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; \
c = http.client.HTTPConnection('127.0.0.1', int(os.environ['RNN_PORT']), timeout=4); \
c.request('GET', '/health/ready'); sys.exit(c.getresponse().status != 200)"]

# Exec form: the service itself gets SIGTERM, and finishes what is running.
ENTRYPOINT ["rnn-service"]
CMD ["serve"]
