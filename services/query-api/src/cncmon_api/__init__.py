"""The query API: what is in the database, over HTTP, and the web page that shows it.

Belongs here: reading samples, series and the live state of machines; HTTP, its limits and its errors; serving the built
page from `static/`.

Does not belong here: writing to the database, migrations, NATS, controllers. Every SQL statement only reads.
"""

__version__ = "0.1.0"
