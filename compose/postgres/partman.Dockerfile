# PostgreSQL's image with pg_partman 5 from PGDG's packages, whose repository the image has.
ARG BASE=postgres:17.6-bookworm
FROM ${BASE}
# Of BASE's own major release.
ARG PARTMAN=5.*
RUN apt-get update \
    && apt-get install -y --no-install-recommends "postgresql-${PG_MAJOR}-partman=${PARTMAN}" \
    && rm -rf /var/lib/apt/lists/*
