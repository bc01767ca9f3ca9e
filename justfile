# All commands. `just` without arguments lists them; `./justw` does the same where just is not installed. Most commands take
# a recipe (tutorial, coach, demo, tiny, your own .toml) or a data file (data/mine.xlsx), then overrides such as train.max_epochs=5.

set positional-arguments

heading := "Workbook in, fine-tuned InternLM2-chat-7B out. Recipes (just RECIPE, or ./justw RECIPE):\n"

[private]
manual:
    @case ${RECIPE_LANG:-${LC_ALL:-${LC_MESSAGES:-${LANG:-}}}} in [Zz][Hh]*) docker/runtime/run help ;; *) {{ just_executable() }} --list --unsorted --list-heading "{{ heading }}" ;; esac

# Show all commands, or one command's options and examples: just help [command]
[group('start')]
[no-exit-message]
help *args:
    @docker/runtime/run help "$@"

# Fine-tune a small pre-trained model, without GPU or Docker, in a few minutes
[group('start')]
[no-exit-message]
demo *args:
    @docker/runtime/run --doctor demo "$@"

# Check what this machine can do before anything is downloaded: just doctor [recipe] [--json]
[group('start')]
[no-exit-message]
doctor *args:
    @docker/runtime/doctor "$@"

# Fine-tune: data, plan, config, training, adapter. A stopped run resumes
[group('start')]
[no-exit-message]
train *args:
    @docker/runtime/run --doctor train "$@"

# Train, then merge the adapter into the base model; the merged model's folder loads anywhere
[group('start')]
[no-exit-message]
merge *args:
    @docker/runtime/run --doctor merge "$@"

# Compare the base model and the tuned one on held-out conversations: just eval [recipe] [eval.answers=100]
[group('start')]
[no-exit-message]
eval *args:
    @docker/runtime/run eval "$@"

# Chat with the model: just chat [recipe] [question] [model=base|adapter|merged]; each line of a pipe is a question
[group('start')]
[no-exit-message]
chat *args:
    @docker/runtime/run chat "$@"

# Follow a run that was started with --detach or elsewhere: just watch [recipe]. Ctrl-C does not stop the run
[group('start')]
[no-exit-message]
watch *args:
    @docker/runtime/run watch "$@"

# Stop a run. Training saves a checkpoint first, and the same command resumes it: just stop [recipe]
[group('start')]
[no-exit-message]
stop *args:
    @docker/runtime/run stop "$@"

# Open a web page: chat with base and tuned model side by side, see the run and the data: just web [recipe] [port=8501]
[group('start')]
[no-exit-message]
web *args:
    @docker/runtime/run web "$@"

# Write a one-page report: verdict, curves, answers, provenance. It also works for an unfinished run: just report [recipe]
[group('start')]
[no-exit-message]
report *args:
    @docker/runtime/run report "$@"

# Check a finished run again: every file's checksum; data, plan, config and adapter made again: just verify [recipe]
[group('start')]
[no-exit-message]
verify *args:
    @docker/runtime/run verify "$@"

# Compare two runs on one page, with both curves: just compare RUN RUN
[group('start')]
[no-exit-message]
compare *args:
    @docker/runtime/run compare "$@"

# List the differences between two runs (recipe, data, versions, machine, result): just diff RUN RUN
[group('start')]
[no-exit-message]
diff *args:
    @docker/runtime/run diff "$@"

# Export the merged model: just export lmdeploy|vllm|gguf|ollama|opencompass|vlmevalkit|upload [recipe]
[group('start')]
[no-exit-message]
export *args:
    @docker/runtime/run export "$@"

# Write a job file for several machines: just cluster slurm|k8s|sky [recipe] [nodes=2 gpus=8]
[group('start')]
[no-exit-message]
cluster *args:
    @docker/runtime/run cluster "$@"

# Run the tutorial exactly, and compare with its published log line by line
[group('start')]
[no-exit-message]
reproduce *args:
    @docker/runtime/run --doctor reproduce "$@"

# Build and carry the container image: just image [build | check | pull REPOSITORY | save FILE | load FILE | sizes]
[group('start')]
[no-exit-message]
image *args:
    @docker/image "$@"

# Measure a training step on this card, in 2 minutes: just bench [recipe]
[group('start')]
[no-exit-message]
bench *args:
    @docker/runtime/run bench "$@"

# List XTuner's 408 presets with family, method, template, data, GPU memory: just presets [word]
[group('start')]
[no-exit-message]
presets *args:
    @docker/runtime/run presets "$@"

# Make a recipe file of your own from a shipped recipe or a preset: just new NAME --from coach
[group('start')]
[no-exit-message]
new *args:
    @docker/runtime/run new "$@"

# Open a shell where the tutorial's own folders resolve, to paste its commands
[group('start')]
[no-exit-message]
shell *args:
    @docker/runtime/run shell "$@"

# Convert a workbook, CSV, JSON or Parquet to dataset.jsonl; errors name their rows
[group('one stage')]
[no-exit-message]
data *args:
    @docker/runtime/run data "$@"

# Describe the data: lengths, likely mistakes, ten conversations as the model sees them
[group('one stage')]
[no-exit-message]
data-report *args:
    @docker/runtime/run data-report "$@"

# Show one conversation as the model sees it, with the loss part marked: just preview [recipe] [row]
[group('one stage')]
[no-exit-message]
preview *args:
    @docker/runtime/run preview "$@"

# Predict a run and its cost; refuses a run that cannot learn
[group('one stage')]
[no-exit-message]
plan *args:
    @docker/runtime/run plan "$@"

# Fetch or make the base model, or check it: --verify reads every byte, --tokenizer only fetches the tokenizer
[group('one stage')]
[no-exit-message]
model *args:
    @docker/runtime/run model "$@"

# Render preset and recipe to an XTuner config; shows the differences
[group('one stage')]
[no-exit-message]
config *args:
    @docker/runtime/run config "$@"

# Convert the last checkpoint to a PEFT adapter
[group('one stage')]
[no-exit-message]
adapter *args:
    @docker/runtime/run adapter "$@"

# Run all tests that this machine can run; `just test quick`: unit tests in two minutes; `just test -k data`: a part
[group('develop')]
test *args: lint
    @[ "${1:-}" != quick ] || { shift && set -- tests/unit -m "not slow" "$@"; }; docker/runtime/host exec python -m pytest -n 2 --dist loadgroup "$@"

# Show on a CPU, with a small pre-trained model, that tutorial learns nothing and coach does (10 minutes)
[group('develop')]
proof *args:
    @docker/runtime/host exec python benchmarks/proof.py "$@"

# Give the readers damaged and strange files: just fuzz [seconds] [seed]
[group('develop')]
fuzz *args:
    @docker/runtime/host exec python benchmarks/fuzz.py "$@"

# Measure the readers' speed and the tutorial's script's
[group('develop')]
bench-data *args:
    @docker/runtime/host exec python benchmarks/bench_data.py "$@"

# Measure the merge's speed, XTuner's and a copy's: just bench-merge [GB, 0.2 to 15.5] [times] [folder] [cpu,cuda]
[group('develop')]
bench-merge *args:
    @docker/runtime/host exec python benchmarks/bench_merge.py "$@"

# Kill and resume training at random moments; compare every byte with an unbroken run: just survive [kills] [seed]
[group('develop')]
survive *args:
    @docker/runtime/host exec python benchmarks/survive.py "$@"

# Train with two ranks, on one machine and on two: just ranks [same] [zero] [resumed] [machines] (15 minutes)
[group('develop')]
ranks *args:
    @docker/runtime/host exec python benchmarks/ranks.py "$@"

# Estimate the GPUs for 7B, 20B and 70B models; writes docs/guide/large-models.md
[group('develop')]
memory:
    @docker/runtime/host exec python benchmarks/memory.py

# Measure the adapter stage on the 7B recipe's 157 million parameters: just bench-adapter [layers] [folder]
[group('develop')]
bench-adapter *args:
    @docker/runtime/host exec python benchmarks/bench_adapter.py "$@"

# Run tiny models of every family in transformers through the whole recipe (20 minutes): just families [name …]
[group('develop')]
families *args:
    @docker/runtime/host exec python benchmarks/families.py "$@"

# Run the linters
[group('develop')]
lint:
    @docker/runtime/host exec docker/lint

# Make the lock files again, byte for byte
[group('develop')]
lock:
    @docker/runtime/host exec python docker/locks/lock.py

# Make the documents' pictures from the finished demo again, with the tests' browser
[group('develop')]
screenshots *args:
    @docker/runtime/host exec python benchmarks/pictures.py "$@"
