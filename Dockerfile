# Training on NVIDIA GPUs, from requirements.lock; /data holds the manifests, the recordings, the
# checkpoints and the samples. `docker run --init` lets signals in from the first second on: Linux
# keeps SIGTERM from a container's first process until that has set up a handler for it.
FROM nvidia/cuda:13.0.0-runtime-ubuntu24.04

# Triton compiles a launcher for its kernels at run time, with gcc and Python's headers.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /tacotron2
COPY requirements.lock ./
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir --require-hashes -r requirements.lock
COPY . ./

# Pass your own id, and the files that training writes to /data are yours.
ARG UID=1000
RUN useradd --create-home --non-unique --uid "$UID" trainer
USER trainer

ENV PATH=/opt/venv/bin:$PATH \
    NUMBA_CACHE_DIR=/tmp/numba \
    PATH_TO_TRAIN_MANIFEST=/data/train_metadata.csv \
    PATH_TO_VAL_MANIFEST=/data/test_metadata.csv \
    WORKING_DIRECTORY=/data/work_dir \
    SAVE_AUDIO_GEN=/data/work_dir/samples
CMD ["bash", "train_taco.sh"]
