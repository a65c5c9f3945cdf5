# One image for all roles: `batchline serve`, `prefect worker start`, and the flow runs that a Docker or Kubernetes
# worker starts. docs/production.md says how each is run. No HEALTHCHECK: each role has its own, or none.
FROM python:3.11-slim AS build
WORKDIR /src
COPY constraints.txt pyproject.toml LICENSE README.md ./
COPY flows flows
COPY models models
COPY tasks tasks
COPY batchline batchline
# Another worker's library: --build-arg EXTRAS=ray
ARG EXTRAS=kubernetes
RUN python -m venv /opt/batchline \
 && /opt/batchline/bin/pip install --no-cache-dir --constraint constraints.txt ".[$EXTRAS]"

FROM python:3.11-slim
# tini passes SIGTERM on and reaps what the runs of a worker leave.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home batchline
COPY --from=build /opt/batchline /opt/batchline
ENV PATH=/opt/batchline/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PREFECT_HOME=/home/batchline/.prefect \
    BATCHLINE_HOME=/home/batchline/.batchline
# By number, so that Kubernetes can see that it is not root.
USER 1000:1000
WORKDIR /home/batchline
ENTRYPOINT ["tini", "--"]
CMD ["batchline", "--help"]
