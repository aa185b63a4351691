"""Check-ins with Django. nginx has verified the certificate and says whose it is.

It writes with one prepared statement, or with PEER_DJANGO=orm by a model's `update_or_create`.
"""

from __future__ import annotations

import datetime
import re

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection, models
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

WITH_ORM = setting("DJANGO") == "orm"
# Prepared statements: off unless asked for, because of pools between the two.
_PREPARED = {"server_side_binding": True, "prepare_threshold": 1}

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
            "OPTIONS": {} if WITH_ORM else _PREPARED,
        }
    },
)

_COMMON_NAME = re.compile(r"(?:^|,)CN=([^,+\\]+)")  # RFC 4514

announce = announcing()
application = get_wsgi_application()


class UserStatus(models.Model):
    email = models.TextField(primary_key=True)
    last_seen = models.DateTimeField()
    client_ip = models.GenericIPAddressField()
    client_port = models.IntegerField()

    class Meta:
        app_label = "check_in"
        db_table = "user_status"


def check_in(request: HttpRequest) -> HttpResponse:
    if request.method not in METHODS:
        return HttpResponseNotAllowed(METHODS)
    email = email_or_none(_COMMON_NAME.findall(request.META["HTTP_X_CLIENT_SUBJECT"]))
    if email is None:
        return HttpResponse(BAD_NAME, status=400)
    client_ip = request.META["HTTP_X_CLIENT_IP"]
    client_port = int(request.META["HTTP_X_CLIENT_PORT"])
    last_seen = datetime.datetime.now(datetime.UTC)
    if WITH_ORM:
        UserStatus.objects.update_or_create(
            email=email,
            defaults={"last_seen": last_seen, "client_ip": client_ip, "client_port": client_port},
        )
    else:
        # One statement: a model's update_or_create is a transaction of several.
        with connection.cursor() as cursor:
            cursor.execute(UPSERT, [email, last_seen, client_ip, client_port])
    announce(email, last_seen, client_ip, client_port)
    return HttpResponse(status=204)


urlpatterns = [path(PATH.removeprefix("/"), check_in)]
