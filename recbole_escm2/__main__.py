"""``python -m recbole_escm2`` is the command line."""

import sys

from recbole_escm2.command_line import main

sys.exit(main())
