// Check-ins with Go: `go_net_http pool` commits each by itself, `go_net_http group-commit` as
// tornado_status does.
package main

import (
	"log"
	"os"
)

func main() {
	ways := map[string]func(){"pool": servePool, "group-commit": serveGroupCommit}
	if len(os.Args) != 2 || ways[os.Args[1]] == nil {
		log.Fatal("expected pool or group-commit")
	}
	ways[os.Args[1]]()
}
