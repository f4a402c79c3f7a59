"""Several workers that share what was compiled before they were forked.

On the CPU only: a CUDA context cannot be forked. There leave preload_app out, and give each worker
a device and PIECEWISE_CACHE_DIR, so that the second one loads what the first one compiled.
"""

import os

os.environ["SERVER_WARM"] = "import"

bind = os.environ.get("SERVER_BIND", "127.0.0.1:8000")
workers = int(os.environ.get("SERVER_WORKERS", "2"))
worker_class = "asgi"
preload_app = True
graceful_timeout = 20
control_socket_disable = True  # it would be written under HOME
worker_tmp_dir = "/dev/shm"  # heartbeats; the root file system may be read-only
