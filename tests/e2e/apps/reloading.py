"""The service of `workers`, started by a script of its own that reloads it: its parent process is metered, too."""

import sys

import uvicorn

from tests.e2e.apps import workers

if __name__ == "__main__":
    port, watched = int(sys.argv[1]), sys.argv[2]
    uvicorn.run("tests.e2e.apps.workers:app", port=port, reload=True, reload_dirs=[watched], reload_delay=0.1)
    workers.write_results()
