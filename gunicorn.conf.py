"""Makes `gunicorn gateway:app` in this directory do the right thing."""

from gateway import gunicorn_conf

globals().update(vars(gunicorn_conf))
