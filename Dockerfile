# For CPUs:  docker build -t flowers17-tfdata .
# For GPUs:  docker build -t flowers17-tfdata --build-arg EXTRAS=export,heic,cuda .
ARG PYTHON=python:3.11-slim

FROM $PYTHON AS build
WORKDIR /source
COPY setup.py setup.cfg pyproject.toml README.md LICENSE ./
COPY configs configs
COPY flowers17_tfdata flowers17_tfdata
RUN pip wheel --no-cache-dir --no-deps --wheel-dir=/wheels .

FROM $PYTHON
# Extras of setup.cfg, separated by commas.
ARG EXTRAS=export,heic
# The dependencies are a layer of their own, which changes of the code keep.
RUN --mount=type=bind,source=setup.cfg,target=/tmp/setup.cfg \
    python -c "import configparser; \
        setup = configparser.ConfigParser(); \
        setup.read('/tmp/setup.cfg'); \
        extras = [setup['options.extras_require'][e] for e in '$EXTRAS'.split(',')]; \
        print(setup['options']['install_requires'], *extras)" \
        > /tmp/requirements.txt \
    && pip install --no-cache-dir -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps /wheels/*.whl
# The home is the volume, so that what is downloaded stays. ENV sets it for the
# users of `docker run --user`, too.
RUN useradd --uid=1000 --home-dir=/data flowers \
    && install --directory --owner=1000 --group=1000 /data
ENV HOME=/data
USER 1000
WORKDIR /data
VOLUME /data
ENTRYPOINT ["flowers17-tfdata"]
CMD ["--help"]
