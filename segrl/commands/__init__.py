"""The commands: each reads files, calls one stage, writes files. What a stage does is in the stage's own module."""
