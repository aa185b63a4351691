# One image for everything: the server, which is what it runs by default, and the listeners,
# clients and certs_gen. The database is a container of its own.

# As exact as a tag can be without missing Python's security releases. For one exact build add its
# digest: --build-arg PYTHON_IMAGE=python:3.13-slim-trixie@sha256:...
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# The server with NATS, and without what `make run` adds. Without bytecode: it would be 20 MB, for a
# third of a second at each start. For traces: --build-arg LOCK=requirements/otel.txt
ARG LOCK=requirements/image.txt
COPY ${LOCK} image.txt
RUN python -m venv --without-pip /opt/tornado_status \
    && python -m pip --python /opt/tornado_status/bin/python install --no-compile --no-deps \
        --only-binary :all: --require-hashes --requirement image.txt
COPY requirements/image-build.txt .
RUN python -m venv tools \
    && tools/bin/python -m pip install --no-deps --only-binary :all: --require-hashes \
        --requirement image-build.txt

COPY LICENSE README.md config.yaml pyproject.toml ./
COPY deploy/tornado-status.service deploy/
COPY certs_gen certs_gen
COPY clients clients
COPY listeners listeners
COPY tornado_status tornado_status
RUN tools/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && python -m pip --python /opt/tornado_status/bin/python install --no-compile --no-deps \
        --no-index dist/*.whl
# Its contents, as a CycloneDX bill of materials: docs/deploy.md.
RUN tools/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
        --output-file /opt/tornado_status/sbom.cdx.json /opt/tornado_status/bin/python


# The parts of the base that the server needs, as one layer: no pip, perl or Debian package manager.
# The list of its packages stays, for scanners.
FROM ${PYTHON_IMAGE} AS system
RUN groupadd --gid 10001 status \
    && useradd --uid 10001 --gid status --no-create-home --home-dir /app \
        --shell /usr/sbin/nologin status
RUN stdlib=$(python -c "import sysconfig; print(sysconfig.get_path('stdlib'))") \
    && pip=$(python -c "import pathlib, pip; print(pathlib.Path(pip.__file__).parent)") \
    && rm -rf "$pip" "$pip"-*.dist-info "$stdlib/ensurepip" "$stdlib/idlelib" "$stdlib/tkinter" \
        "$stdlib/turtledemo" "$stdlib/pydoc_data" /usr/local/include /usr/local/bin/pip* \
        /usr/local/bin/idle* /usr/bin/pip* /usr/bin/perl* /usr/bin/apt* /usr/bin/dpkg* \
        /usr/lib/apt /usr/lib/dpkg /usr/lib/*/perl-base /usr/lib/*/libapt-* /usr/lib/*/gconv \
        /usr/share/python-wheels /usr/share/doc /usr/share/man /usr/share/locale \
        /usr/share/perl* /usr/share/info /var/cache /var/lib/apt /var/log \
    && find / -xdev -depth -name __pycache__ -exec rm -rf {} + \
    && mkdir -p /var/cache /var/log
# A new volume mounted on one of these takes over its owner, so that certs_gen, as this user without
# any capability, can fill it. Relative paths in config.yaml are relative to /app.
RUN install --directory --owner status --group status /app/certs \
        /handed/server /handed/listener /handed/client
COPY --from=builder /opt/tornado_status /opt/tornado_status
COPY config.yaml /app/


FROM scratch
LABEL org.opencontainers.image.title="tornado_status" \
      org.opencontainers.image.description="A check-in service: a client certificate is the identity" \
      org.opencontainers.image.licenses="MIT"
ENV PATH=/opt/tornado_status/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# hadolint ignore=DL3067 # all that the stage before has left of the base, as one layer
COPY --from=system / /
WORKDIR /app

# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
EXPOSE 8443
STOPSIGNAL SIGTERM

# Healthy means that check-ins are recorded: `up --wait` and depends_on wait for that. Ask /healthz
# instead if unhealthy containers are replaced, as in a swarm: a restart does not help while /readyz
# says no. The server comes back by itself once the database does.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-Ic", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 9464, timeout=4); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["python", "-m", "tornado_status", "--config", "config.yaml"]
