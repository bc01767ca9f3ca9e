# The recipe's image: Python 3.8, PyTorch 2.0.0 (CUDA 11.8), XTuner 0.1.14, everything as locked in docker/locks/*.lock; as
# variant cu13 Python 3.12, PyTorch 2.11.0 (CUDA 13) and the same XTuner.
#
#   just image          builds it; the versions, the time and the commit come as arguments (docker/image)
#   docker build .      works too; cu13 with --build-arg VARIANT=cu13 and its BASE_IMAGE
#
# Stages: bare (the recipe without its environment, for tests), final (the image), devel (final and CUDA 11.8's
# compiler, for DeepSpeed's own operations and FlashAttention).

# For users who cannot reach Docker's registry: a mirror, or another base image.
ARG REGISTRY=docker.io/library
ARG BASE_IMAGE=python:3.8.20-slim-bookworm@sha256:1d52838af602b4b5a831beb13a0e4d073280665ea7be7f69ce2382f29c5a613f
# cu13: ARG BASE_IMAGE=python:3.12.13-slim-bookworm@sha256:4766d8b510c428e595d74b9cc5bbb2fae8e26316fffb4adc89908d79aacd58a2

FROM ${REGISTRY}/${BASE_IMAGE} AS base

# just, uv and the init process, by hash.
FROM base AS tools
ARG PIP_INDEX_URL
ARG SOURCE_DATE_EPOCH=0
WORKDIR /src
COPY justw ./
COPY docker/runtime/message docker/runtime/python docker/runtime/
COPY docker/locks/tools.lock docker/locks/
# A closed network's certificates are only there while this runs; the image does not keep them (docker/image).
RUN --mount=type=secret,id=certificates if [ -s /run/secrets/certificates ]; then export SSL_CERT_FILE=/run/secrets/certificates; fi \
    && RECIPE_CACHE=/opt/recipe ./justw --version \
    && mv /opt/recipe/tools-* /opt/recipe/tools \
    && find /opt/recipe -name __pycache__ -prune -exec rm -rf {} + \
    && rm -f /opt/recipe/justw.log \
    && find /opt/recipe -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

# The locked environment, by the same script that makes it on a host.
FROM tools AS environment
ARG VARIANT=cu118
ARG TORCH=cu118
ARG UV_DEFAULT_INDEX
ARG TORCH_INDEX
ARG SOURCE_DATE_EPOCH=0
COPY docker/runtime/host docker/runtime/flavour docker/runtime/
COPY docker/locks/*.lock docker/locks/overrides.txt docker/locks/
ENV UV=/opt/recipe/tools/bin/uv UV_NO_CACHE=1 RECIPE_CACHE=/opt/recipe VARIANT=$VARIANT TORCH=$TORCH
# Installs all packages by hash, checks their requirements, and lists them as text and in a standard format.
RUN --mount=type=secret,id=certificates if [ -s /run/secrets/certificates ]; then export SSL_CERT_FILE=/run/secrets/certificates; fi \
    && env=$(docker/runtime/host env) \
    && ln -s "${env##*/}" /opt/recipe/env \
    && docker/runtime/host check \
    && docker/runtime/host manifest /opt/recipe \
    && find /opt/recipe -name __pycache__ -prune -exec rm -rf {} + \
    && rm -rf /opt/recipe/sbom-* /opt/recipe/tools "$env.log" \
    && find /opt/recipe -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

# The recipe's user and folders that all users may write to, as any other user works too. mmengine needs OpenCV, which is
# linked against libGL and GLib. cu13's Triton compiles its launcher when it first runs, with gcc and the C library's headers:
# 90 MB. /etc/environment is for logins without the variables below, such as ssh to an instance. All files get the
# commit's time, so that builds can be compared.
FROM base AS seat
ARG VARIANT=cu118
ARG SOURCE_DATE_EPOCH=0
# hadolint ignore=DL3008
RUN start=$(date +%s.%N) \
    && if [ "$VARIANT" = cu13 ]; then set -- gcc libc6-dev; fi \
    && apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 "$@" \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/ldconfig/aux-cache /var/log/*.log /var/log/apt \
    && mkdir /opt/recipe \
    && dpkg-query --show >/opt/recipe/debian.txt \
    && groupadd --gid 1000 recipe \
    && useradd --uid 1000 --gid recipe --home-dir /opt/internlm2-recipe/.cache --no-create-home --shell /bin/bash recipe \
    && install -d -m 1777 /opt/internlm2-recipe/data /opt/internlm2-recipe/models /opt/internlm2-recipe/output \
        /opt/internlm2-recipe/.cache \
    && rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid- \
    && sed -i "s/^\(recipe:[^:]*\):[0-9]*:/\1:$((SOURCE_DATE_EPOCH / 86400)):/" /etc/shadow \
    && printf 'PATH=/opt/recipe/tools/bin:%s\nRECIPE_ENV=/opt/recipe/env\n' "$PATH" >/etc/environment \
    && sed 's/^/export /' /etc/environment >/etc/profile.d/recipe.sh \
    && find /etc /opt /tmp /usr /var -xdev -newermt "@$start" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
COPY --from=tools /opt/recipe/tools /opt/recipe/tools
ENV PATH=/opt/recipe/tools/bin:$PATH \
    HOME=/opt/internlm2-recipe/.cache \
    LANG=C.UTF-8 \
    RECIPE_ENV=/opt/recipe/env
WORKDIR /opt/internlm2-recipe
ENTRYPOINT ["dumb-init", "--"]
CMD ["just"]

FROM seat AS bare
ARG SOURCE_DATE_EPOCH=0
COPY . .
RUN chmod 1777 . data \
    && find /opt -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
USER 1000:1000

FROM seat AS final
ARG SOURCE_DATE_EPOCH=0
COPY --from=environment /opt/recipe /opt/recipe
COPY . .
RUN chmod 1777 . data \
    && find /opt -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
USER 1000:1000

# nvcc of Debian's nvidia-cuda-toolkit 11.8 with its compiler (nvcc -ccbin cuda-g++). Its libcuda would come before the host
# driver's, so it is deleted.
FROM final AS devel
USER 0
# hadolint ignore=DL3008
RUN find /etc/apt -name '*.sources' -exec sed -i 's/^Components: main$/& contrib non-free/' {} + \
    && find /etc/apt -name '*.list' -exec sed -i 's/ main$/& contrib non-free/' {} + \
    && apt-get update \
    && apt-get install -y --no-install-recommends g++ git make ninja-build nvidia-cuda-toolkit nvidia-cuda-toolkit-gcc \
    && rm -rf /var/lib/apt/lists/* \
    && find / -xdev \( -name 'libcuda.so*' -o -name 'libnvidia-ptxjitcompiler.so*' \) -not -path '*/stubs/*' -delete \
    && ldconfig
ENV CUDA_HOME=/usr/lib/nvidia-cuda-toolkit \
    NVCC_PREPEND_FLAGS="-ccbin cuda-g++"
USER 1000:1000

# The default target.
FROM final
