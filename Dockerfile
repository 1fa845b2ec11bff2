FROM python:3.13-slim

WORKDIR /app
COPY requirements.lock .
RUN pip install --no-cache-dir --require-hashes --requirement requirements.lock

COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY byline byline
COPY engine engine
COPY activities activities
COPY workflows workflows
COPY gateway gateway
COPY migrations migrations
COPY examples examples
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && useradd --create-home byline \
    && install --directory --owner byline /data

USER byline
CMD ["byline", "gateway"]
