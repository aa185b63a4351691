// One statement a request, over the pool of pgx.
package main

import (
	"context"
	"encoding/json"
	"log"
	"net/http"
	"time"

	"github.com/jackc/pgx/v4/pgxpool"
)

const (
	poolSize = 32
	upsert   = `INSERT INTO user_status (email, last_seen, client_ip, client_port)
		VALUES ($1, $2, $3::text::inet, $4)
		ON CONFLICT (email) DO UPDATE SET last_seen = excluded.last_seen,
			client_ip = excluded.client_ip, client_port = excluded.client_port`
)

type update struct {
	Email      string    `json:"email"`
	LastSeen   time.Time `json:"last_seen"`
	ClientIP   string    `json:"client_ip"`
	ClientPort int       `json:"client_port"`
}

func servePool() {
	config, err := pgxpool.ParseConfig(databaseURL())
	check(err)
	config.MinConns = poolSize
	config.MaxConns = poolSize
	pool, err := pgxpool.ConnectConfig(context.Background(), config)
	check(err)
	announcer := newAnnouncer()

	serve(func(w http.ResponseWriter, r *http.Request, from *peer) {
		seen := update{from.email, time.Now().UTC(), from.ip, from.port}
		// pgx prepares it once a connection by itself.
		_, err := pool.Exec(r.Context(), upsert, from.email, seen.LastSeen, from.ip, from.port)
		if err != nil {
			log.Print(err)
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		payload, err := json.Marshal(seen)
		if err == nil {
			announcer.send(payload)
		}
		w.WriteHeader(http.StatusNoContent)
	})
}
