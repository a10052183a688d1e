"""What the commands that look at data and daemons are made of: measuring, drawing and telling. No trainer needs them.

Commands import these modules; nothing else does. Those that judge, draw or write text are pure.
"""
