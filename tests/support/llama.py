"""Asks llama.cpp (PyPI: xllamacpp, docker/locks/engines.in; Python 3.10 or later) about a GGUF file.

    python llama.py FILE <questions.json >answers.json

Questions: a list of [path of llama.cpp's server, body]; answers: a list of the replies' bodies.
"""

import json
import sys
import urllib.request

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 2048
params.n_parallel = 1
params.cpuparams.n_threads = 1
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.warmup = False
params.verbosity = 1
params.hostnames = ["127.0.0.1"] if isinstance(params.hostnames, list) else params.hostnames
params.port = 0
server = xllamacpp.Server(params)
answers = []
for path, body in json.load(sys.stdin):
    request = urllib.request.Request(
        server.listening_address + path,
        json.dumps(body).encode() if body is not None else None,
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        answers.append(json.load(reply))
json.dump(answers, sys.stdout)
