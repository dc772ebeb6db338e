# The programs on a CPU, installed from the lock.
#
#   docker build -t latent-separation .
#   docker run --rm --user "$(id -u)" -v "$PWD:/music" latent-separation separate song.mp3
#   docker run --rm --user "$(id -u)" -v "$PWD:/music" -p 7860:7860 latent-separation app --host 0.0.0.0
#
# Behind a mirror of the package index: --build-arg PIP_FLAGS="--index-url ...".
FROM python:3.11-slim
# ffmpeg reads m4a, opus and webm; gcc compiles the kernels of priors and codec at their first use.
RUN apt-get update && apt-get install -y --no-install-recommends ffmpeg gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /source
ARG PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
COPY requirements.lock .
RUN pip install --no-cache-dir $PIP_FLAGS --require-hashes --no-deps -r requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
RUN useradd --create-home listener
USER listener
WORKDIR /music
ENTRYPOINT ["latent-separation"]
