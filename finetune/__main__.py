"""`python -m finetune` is `gptft`; so launchers of several processes can start it."""

import sys

from finetune.cli import main

if __name__ == "__main__":
    sys.exit(main())
