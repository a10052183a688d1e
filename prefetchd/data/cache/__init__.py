"""The cache of decoded samples: pixels that were decoded once, in files, for later epochs, runs and trainers.

    keys         which pipelines can be cached; (file as it is, pipeline) -> key
    directory    the folders and files of a cache: made, checked, listed, removed
    segment      one writer's rows and its index of them: appended, read, checked
    run_state    what readers share in one run: from a sample to its row, and from a key to its row
    daemon_side  what the daemon does: opens, reports, warns
    reader_side  what a reader does: find, store, read at full speed

The daemon opens it (`daemon_side`), `images.source` asks it (`reader_side`), and `prefetchd cache` looks after the
files.
"""
