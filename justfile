# The front door. `just` alone prints this manual; `./justw` is the same where just is not installed.
# Every recipe takes a recipe file's name first (tutorial, coach, demo, or your own .toml), then overrides
# such as train.max_epochs=5.

set positional-arguments

heading := "Workbook in, fine-tuned InternLM2-chat-7B out. Recipes (just RECIPE, or ./justw RECIPE):\n"

[private]
manual:
    @{{ just_executable() }} --list --unsorted --list-heading "{{ heading }}"

# Everything on a tiny model: no GPU, no Docker, a few minutes. Proves the machine and the recipe
[group('start')]
[no-exit-message]
demo *args:
    @docker/host run demo "$@"

# Fine-tune: data, plan, config, training, adapter. Resumes by itself
[group('start')]
[no-exit-message]
train *args:
    @docker/host run train "$@"

# Train, then join adapter and base into a model folder that loads anywhere
[group('start')]
[no-exit-message]
merge *args:
    @docker/host run merge "$@"

# Talk to the merged model: just chat [recipe] [question]
[group('start')]
[no-exit-message]
chat *args:
    @docker/host run chat "$@"

# The tutorial exactly, compared line by line with its published log
[group('start')]
[no-exit-message]
reproduce *args:
    @docker/host run reproduce "$@"

# A shell where the tutorial's own folders resolve: paste the page's commands
[group('start')]
shell:
    @docker/host shell

# Workbook, CSV, JSON or Parquet to dataset.jsonl; every fault by its row
[group('one stage')]
[no-exit-message]
data *args:
    @docker/host run data "$@"

# What is in the data: lengths, likely mistakes, ten conversations as the model sees them
[group('one stage')]
[no-exit-message]
data-report *args:
    @docker/host run data-report "$@"

# One conversation as the model will see it, its loss part marked: just preview [recipe] [row]
[group('one stage')]
[no-exit-message]
preview *args:
    @docker/host run preview "$@"

# What training will do and cost; refuses a run that cannot learn
[group('one stage')]
[no-exit-message]
plan *args:
    @docker/host run plan "$@"

# Fetch (or make) the base model
[group('one stage')]
[no-exit-message]
model *args:
    @docker/host run model "$@"

# Preset and recipe to an XTuner config, with the difference shown
[group('one stage')]
[no-exit-message]
config *args:
    @docker/host run config "$@"

# Checkpoint to PEFT adapter
[group('one stage')]
[no-exit-message]
adapter *args:
    @docker/host run adapter "$@"

# Everything that can be tested on this machine; `just test -k data` for a part
[group('develop')]
test *args: lint
    @docker/host exec python -m pytest "$@"

# With a real pre-trained model on a CPU: tutorial learns nothing, coach does (10 minutes)
[group('develop')]
proof *args:
    @docker/host proof "$@"

# Damaged and strange files against the readers: just fuzz [seconds] [seed]
[group('develop')]
fuzz *args:
    @docker/host exec python tests/fuzz.py "$@"

# The readers' speed beside the tutorial's script, in one run
[group('develop')]
bench *args:
    @docker/host exec python tests/bench.py "$@"

# The merge's speed beside XTuner's and a plain copy: just bench-merge [GB, up to 15.5] [times] [folder] [cuda]
[group('develop')]
bench-merge *args:
    @docker/host exec python tests/bench_merge.py "$@"

# The adapter stage's time and memory on the 7B recipe's 157 million parameters
[group('develop')]
bench-adapter *args:
    @docker/host exec python tests/bench_adapter.py "$@"

# Linters alone
[group('develop')]
lint:
    @docker/host exec ruff check .
    @docker/host exec ruff format --check .
    @docker/host exec shellcheck justw docker/host docker/shell .ci/run
    @{{ just_executable() }} --fmt --check

# Make the locks again, byte for byte
[group('develop')]
lock:
    @docker/host exec python docker/lock.py
