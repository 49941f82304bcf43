# Training on NVIDIA GPUs, from requirements.lock. README.md has the commands that build and run it.
# /data holds the manifests, the recordings, the checkpoints and the samples.
FROM nvidia/cuda:13.0.0-runtime-ubuntu24.04

# Triton compiles a launcher for its kernels at run time, with gcc and Python's headers. procps has
# pkill, by which train_taco.sh passes signals on.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev procps python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /tacotron2
COPY requirements.lock ./
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir --require-hashes -r requirements.lock
COPY *.py *.sh ./
COPY command_line/ command_line/
COPY fast/ fast/
COPY scoring/ scoring/
COPY speech/ speech/
COPY text/ text/
COPY training/ training/

# With the id of whoever builds the image, what training writes to /data is theirs.
ARG UID=1000
RUN useradd --create-home --non-unique --uid "$UID" trainer
USER trainer

ENV PATH=/opt/venv/bin:$PATH \
    PATH_TO_TRAIN_MANIFEST=/data/train_metadata.csv \
    PATH_TO_VAL_MANIFEST=/data/test_metadata.csv \
    WORKING_DIRECTORY=/data/work_dir \
    SAVE_AUDIO_GEN=/data/work_dir/samples
CMD ["bash", "train_taco.sh"]
