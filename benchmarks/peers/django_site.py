"""Check-ins with Django. nginx has verified the certificate and says whose it is."""

from __future__ import annotations

import datetime
import re

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.urls import path

from benchmarks.peers.python_parts import (
    BAD_NAME,
    METHODS,
    PATH,
    UPSERT,
    announcing,
    email_or_none,
    setting,
)

settings.configure(
    ALLOWED_HOSTS=["localhost"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[],
    USE_TZ=True,
    LOGGING_CONFIG=None,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": setting("DATABASE_SOCKET"),
            "USER": setting("DATABASE_USER"),
            "NAME": setting("DATABASE"),
            "CONN_MAX_AGE": None,  # persistent
            # Prepared statements: off unless asked for, because of pools between the two.
            "OPTIONS": {"server_side_binding": True, "prepare_threshold": 1},
        }
    },
)

_COMMON_NAME = re.compile(r"(?:^|,)CN=([^,+\\]+)")  # RFC 4514

announce = announcing()


def check_in(request: HttpRequest) -> HttpResponse:
    if request.method not in METHODS:
        return HttpResponseNotAllowed(METHODS)
    email = email_or_none(_COMMON_NAME.findall(request.META["HTTP_X_CLIENT_SUBJECT"]))
    if email is None:
        return HttpResponse(BAD_NAME, status=400)
    client_ip = request.META["HTTP_X_CLIENT_IP"]
    client_port = int(request.META["HTTP_X_CLIENT_PORT"])
    last_seen = datetime.datetime.now(datetime.UTC)
    # One statement: a model's update_or_create would be a transaction of three.
    with connection.cursor() as cursor:
        cursor.execute(UPSERT, [email, last_seen, client_ip, client_port])
    announce(email, last_seen, client_ip, client_port)
    return HttpResponse(status=204)


urlpatterns = [path(PATH.removeprefix("/"), check_in)]
application = get_wsgi_application()
