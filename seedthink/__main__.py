"""`python -m seedthink`."""

from seedthink.cli.main import main

raise SystemExit(main())
