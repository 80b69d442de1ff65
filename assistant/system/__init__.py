"""The machine that we run on: processes, processors, file rights."""
