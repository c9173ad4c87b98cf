import sys

from segrl.commands.cli import main

sys.exit(main())
