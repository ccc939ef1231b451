"""`python -m eventstore.cli`."""

import sys

from eventstore.cli.command import main

sys.exit(main())
