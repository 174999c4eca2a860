# Both stages on a GPU: docker build -t maskalign . ; docs/install.md says how to run it.
FROM python:3.12-slim

WORKDIR /opt/maskalign
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY maskalign maskalign
COPY pipeline pipeline
COPY stages stages
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[cloud,tensorboard]'

RUN useradd --create-home maskalign
USER maskalign
WORKDIR /home/maskalign
CMD ["extract-teacher", "--help"]
