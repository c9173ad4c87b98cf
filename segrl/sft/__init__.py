"""Traces and selections -> the rows to train on, the stages of a training, and the trained model as a folder."""
