import sys

from keras_dynmask.cli import main

sys.exit(main())
