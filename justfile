# The front door. `just` alone prints this manual; `./justw` is the same where just is not installed.
# Every recipe takes a recipe file's name first (tutorial, coach, demo, or your own .toml), then overrides
# such as train.max_epochs=5.

set positional-arguments

heading := "Workbook in, fine-tuned InternLM2-chat-7B out. Recipes (just RECIPE, or ./justw RECIPE):\n"

[private]
manual:
    @{{ just_executable() }} --list --unsorted --list-heading "{{ heading }}"

# All commands, or one command's options and examples: just help [command]
[group('start')]
[no-exit-message]
help *args:
    @docker/runtime/run help "$@"

# Everything on a tiny model: no GPU, no Docker, a few minutes. Proves the machine and the recipe
[group('start')]
[no-exit-message]
demo *args:
    @docker/runtime/run --doctor demo "$@"

# What this machine can and cannot do, before anything is downloaded: just doctor [recipe] [--json]
[group('start')]
[no-exit-message]
doctor *args:
    @docker/runtime/doctor "$@"

# Fine-tune: data, plan, config, training, adapter. Resumes by itself
[group('start')]
[no-exit-message]
train *args:
    @docker/runtime/run --doctor train "$@"

# Train, then join adapter and base into a model folder that loads anywhere
[group('start')]
[no-exit-message]
merge *args:
    @docker/runtime/run --doctor merge "$@"

# Is it better? Base and tuned on what was held out of training: just eval [recipe] [eval.answers=100]
[group('start')]
[no-exit-message]
eval *args:
    @docker/runtime/run eval "$@"

# Talk to it: just chat [recipe] [question] [model=base|adapter|merged]; a pipe asks line by line
[group('start')]
[no-exit-message]
chat *args:
    @docker/runtime/run chat "$@"

# Follow a run that was started with --detach or elsewhere; Ctrl-C leaves it alone: just watch [recipe]
[group('start')]
[no-exit-message]
watch *args:
    @docker/runtime/run watch "$@"

# End a run as SIGTERM does: training saves, and the same command goes on from there: just stop [recipe]
[group('start')]
[no-exit-message]
stop *args:
    @docker/runtime/run stop "$@"

# Talk to base and tuned side by side, look at the run and the data, in a browser: just web [recipe] [port=8501]
[group('start')]
[no-exit-message]
web *args:
    @docker/runtime/run web "$@"

# What happened, on one page: verdict, curves, answers, provenance; works at every stage: just report [recipe]
[group('start')]
[no-exit-message]
report *args:
    @docker/runtime/run report "$@"

# A finished run's checks once more: every file, data, plan, config and adapter made again: just verify [recipe]
[group('start')]
[no-exit-message]
verify *args:
    @docker/runtime/run verify "$@"

# Two runs on one page, with both curves and what differs: just compare RUN RUN
[group('start')]
[no-exit-message]
compare *args:
    @docker/runtime/run compare "$@"

# What differs between two runs (recipe, data, versions, machine, result), as a table: just diff RUN RUN
[group('start')]
[no-exit-message]
diff *args:
    @docker/runtime/run diff "$@"

# Hand the merged model over: just export lmdeploy|vllm|gguf|ollama|opencompass|vlmevalkit|upload [recipe]
[group('start')]
[no-exit-message]
export *args:
    @docker/runtime/run export "$@"

# A job file for several machines, from the recipe: just cluster slurm|k8s|sky [recipe] [nodes=2 gpus=8]
[group('start')]
[no-exit-message]
cluster *args:
    @docker/runtime/run cluster "$@"

# The tutorial exactly, compared line by line with its published log
[group('start')]
[no-exit-message]
reproduce *args:
    @docker/runtime/run --doctor reproduce "$@"

# The container image: just image [build | check | pull REPOSITORY | save FILE | load FILE | sizes]
[group('start')]
[no-exit-message]
image *args:
    @docker/image "$@"

# What a training step takes on this card, and how near that is to what it can do: just bench [recipe] (2 minutes)
[group('start')]
[no-exit-message]
bench *args:
    @docker/runtime/run bench "$@"

# What XTuner ships: 408 presets with family, method, template, data, GPU memory: just presets [word]
[group('start')]
[no-exit-message]
presets *args:
    @docker/runtime/run presets "$@"

# A recipe file of your own from one of them: just new NAME --from PRESET
[group('start')]
[no-exit-message]
new *args:
    @docker/runtime/run new "$@"

# A shell where the tutorial's own folders resolve: paste the page's commands
[group('start')]
[no-exit-message]
shell *args:
    @docker/runtime/run shell "$@"

# Workbook, CSV, JSON or Parquet to dataset.jsonl; every fault by its row
[group('one stage')]
[no-exit-message]
data *args:
    @docker/runtime/run data "$@"

# What is in the data: lengths, likely mistakes, ten conversations as the model sees them
[group('one stage')]
[no-exit-message]
data-report *args:
    @docker/runtime/run data-report "$@"

# One conversation as the model will see it, its loss part marked: just preview [recipe] [row]
[group('one stage')]
[no-exit-message]
preview *args:
    @docker/runtime/run preview "$@"

# What training will do and cost; refuses a run that cannot learn
[group('one stage')]
[no-exit-message]
plan *args:
    @docker/runtime/run plan "$@"

# Fetch (or make) the base model, or check it; --verify reads every byte again, --tokenizer fetches no more than that
[group('one stage')]
[no-exit-message]
model *args:
    @docker/runtime/run model "$@"

# Preset and recipe to an XTuner config, with the difference shown
[group('one stage')]
[no-exit-message]
config *args:
    @docker/runtime/run config "$@"

# Checkpoint to PEFT adapter
[group('one stage')]
[no-exit-message]
adapter *args:
    @docker/runtime/run adapter "$@"

# Everything that can be tested on this machine; `just test -k data` for a part
[group('develop')]
test *args: lint
    @docker/runtime/host exec python -m pytest -n 2 --dist loadgroup "$@"

# With a real pre-trained model on a CPU: tutorial learns nothing, coach does (10 minutes; --check: is it the model?)
[group('develop')]
proof *args:
    @docker/runtime/host proof "$@"

# Damaged and strange files against the readers: just fuzz [seconds] [seed]
[group('develop')]
fuzz *args:
    @docker/runtime/host exec python tests/fuzz.py "$@"

# The readers' speed beside the tutorial's script, in one run
[group('develop')]
bench-data *args:
    @docker/runtime/host exec python tests/bench_data.py "$@"

# The merge's speed beside XTuner's and a plain copy: just bench-merge [GB, 0.2 to 15.5] [times] [folder] [cpu,cuda]
[group('develop')]
bench-merge *args:
    @docker/runtime/host exec python tests/bench_merge.py "$@"

# Training killed at random moments and resumed, against an unbroken run, byte for byte: just survive [kills] [seed]
[group('develop')]
survive *args:
    @docker/runtime/host exec python tests/survive.py "$@"

# Two ranks, on one machine and on two: just ranks [same] [zero] [resumed] [machines] (15 minutes on two idle cores)
[group('develop')]
ranks *args:
    @docker/runtime/host exec python tests/ranks.py "$@"

# What 7B, 20B and 70B models take on how many GPUs: writes docs/guide/large-models.md
[group('develop')]
memory:
    @docker/runtime/host exec python tests/memory.py

# The adapter stage's time and memory on the 7B recipe's 157 million parameters: just bench-adapter [layers] [folder]
[group('develop')]
bench-adapter *args:
    @docker/runtime/host exec python tests/bench_adapter.py "$@"

# Tiny models of every family that transformers carries, through the whole recipe (20 minutes): just families [name …]
[group('develop')]
families *args:
    @docker/runtime/host exec python tests/families.py "$@"

# Linters alone
[group('develop')]
lint:
    @docker/runtime/host exec docker/lint

# Make the locks again, byte for byte
[group('develop')]
lock:
    @docker/runtime/host exec python docker/locks/lock.py

# The documents' pictures anew, by the tests' own browser
[group('develop')]
screenshots *args:
    @SCREENSHOTS=1 docker/runtime/host exec python -m pytest -q tests -k picture "$@"
