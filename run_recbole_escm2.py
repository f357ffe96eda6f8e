"""Train and score a model: ``python run_recbole_escm2.py --model=ESCM2_DR --dataset=ml-100k``."""

import sys

from recbole_escm2.command_line import main

if __name__ == "__main__":
    sys.exit(main())
