# The image of the testbed from programs and the libraries that they load, gathered by tests/testbed/run. A file of its
# own, since a builder without BuildKit runs every stage of a file, also those that need an image from a registry.
ARG BASE=scratch
FROM ${BASE}
COPY dist/ /
ENTRYPOINT ["/usr/local/bin/tropa"]
