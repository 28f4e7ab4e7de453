"""Kernels run on a GPU where there is one, else in Triton's interpreter; chosen before they are imported."""

import interpreter

interpreter.use()
