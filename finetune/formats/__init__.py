"""Trained models as files for small devices: FORMATS, and what each costs. Nothing is imported here, so
that a process that measures a runtime holds that runtime alone.
"""
