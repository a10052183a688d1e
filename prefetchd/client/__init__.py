"""The consumer's side: loaders, their connection to a daemon, and the batches they hold."""

from prefetchd.ipc.platform import check_platform

check_platform()  # the modules of this package cannot even be imported on other systems
