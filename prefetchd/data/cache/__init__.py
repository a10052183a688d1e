"""The cache of decoded samples: pixels that were decoded once, in files, for later epochs, runs and trainers.

    rules       which pipelines can be cached, and at which size
    keys        (file as it is, pipeline) -> key
    directory   the folders and files of a cache: made, listed, removed
    segment     one writer's rows and its index of them: appended, read, checked
    lookup      key -> where its row is, for all that was there when the daemon started
    run_state   sample -> row, as found out in this run; shared by all readers
    room        how much more may be written
    in_daemon   what the daemon does: opens, reports, warns
    in_reader   what a reader does: find, store, read at full speed

The daemon opens it (`in_daemon`), `sources.images` asks it (`in_reader`), and `commands.cache` looks after the files.
"""
