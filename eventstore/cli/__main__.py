"""`python -m eventstore.cli`."""

import sys

from eventstore.cli.app import main

sys.exit(main())
