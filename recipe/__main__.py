"""python -m recipe COMMAND …: what `just` starts in every runtime."""

from pathlib import Path

from recipe.cli import main

main.prepare_process(Path.cwd())  # before anything imports a library

if __name__ == "__main__":
    main.cli.main()
