// The group commit of tornado_status, with the same statement and the same datagrams. Check-ins that
// arrive while a commit is in flight are written by the next one.
package main

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgconn"
)

const (
	maxBatch    = 512
	maxDatagram = 1400
	// `,"kid":"…16…"` and `,"sig":"…86…"}`
	signatureRoom = 121
	timestamp     = "2006-01-02T15:04:05.000000Z"

	// As tornado_status prepares its writing connection.
	session = `SET default_transaction_isolation = 'read committed';
		SET plan_cache_mode = force_generic_plan;
		SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
		SET jit = off;`
)

type checkIn struct {
	*peer
	done chan error
}

func serveGroupCommit() {
	connection, err := pgconn.Connect(context.Background(), databaseURL())
	check(err)
	rows, err := execute(connection, session+setting("RECORD")+"; SELECT stream FROM head")
	check(err)
	writer := &writer{
		connection: connection,
		logID:      rows[0],
		announcer:  newAnnouncer(),
		signer:     newSigner(),
	}
	queue := make(chan *checkIn, 10000)
	go writer.run(queue)

	serve(func(w http.ResponseWriter, _ *http.Request, from *peer) {
		pending := &checkIn{from, make(chan error, 1)}
		queue <- pending
		if err := <-pending.done; err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
}

type writer struct {
	connection *pgconn.PgConn
	logID      string
	announcer  announcer
	signer     signer
}

// run commits batch after batch: one waits for the first of a batch, and takes what is there.
func (w *writer) run(queue <-chan *checkIn) {
	for first := range queue {
		batch := []*checkIn{first}
	fill:
		for len(batch) < maxBatch {
			select {
			case next := <-queue:
				batch = append(batch, next)
			default:
				break fill
			}
		}
		err := w.commit(batch)
		if err != nil {
			log.Print(err)
		}
		for _, pending := range batch {
			pending.done <- err
		}
	}
}

func (w *writer) commit(batch []*checkIn) error {
	// Two statements in one round trip are one transaction: lock the head, then write.
	row, err := execute(w.connection, "SELECT seq FROM head FOR UPDATE; "+executeRecord(batch))
	if err != nil {
		return err
	}
	var base, microseconds int64
	if _, err := fmt.Sscan(row[0]+" "+row[1], &base, &microseconds); err != nil {
		return err
	}
	events := map[string]string{}
	for column, event := range map[int]string{2: "new", 3: "back"} {
		for _, number := range strings.Split(strings.Trim(row[column], "{}"), ",") {
			events[number] = event
		}
	}
	w.announce(batch, base, time.UnixMicro(microseconds).UTC().Format(timestamp), events)
	return nil
}

// announce sends as many updates a datagram as fit, as docs/protocol.md says.
func (w *writer) announce(batch []*checkIn, base int64, lastSeen string, events map[string]string) {
	sent := time.Now().UTC().Format(timestamp)
	envelope := fmt.Sprintf(`{"v":1,"log":"%s","sent":"%s","head":%d,"updates":[`,
		w.logID, sent, base+int64(len(batch)))
	datagram := append(make([]byte, 0, maxDatagram), envelope...)
	for number, c := range batch {
		event := "check-in"
		if special, found := events[strconv.Itoa(number+1)]; found {
			event = special
		}
		update := fmt.Sprintf(`{"seq":%d,"event":"%s","email":"%s","last_seen":"%s",`+
			`"client_ip":"%s","client_port":%d}`,
			base+int64(number)+1, event, c.email, lastSeen, c.ip, c.port)
		if len(datagram)+1+len(update)+2 > maxDatagram-signatureRoom {
			w.announcer.send(w.signer.close(datagram))
			datagram = datagram[:len(envelope)]
		}
		if len(datagram) > len(envelope) {
			datagram = append(datagram, ',')
		}
		datagram = append(datagram, update...)
	}
	w.announcer.send(w.signer.close(datagram))
}

type signer struct {
	key ed25519.PrivateKey
	kid string
}

func newSigner() signer {
	text, err := os.ReadFile(setting("ANNOUNCER_KEY"))
	check(err)
	block, _ := pem.Decode(text)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	check(err)
	key := parsed.(ed25519.PrivateKey)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	check(err)
	digest := sha256.Sum256(public)
	return signer{key, hex.EncodeToString(digest[:8])}
}

// close ends the updates, and signs all that is before the signature.
func (s signer) close(datagram []byte) []byte {
	signed := fmt.Appendf(datagram, `],"kid":"%s"`, s.kid)
	signature := base64.RawURLEncoding.EncodeToString(ed25519.Sign(s.key, signed))
	return fmt.Appendf(signed, `,"sig":"%s"}`, signature)
}

// executeRecord returns the EXECUTE statement with its arrays as literals.
func executeRecord(batch []*checkIn) string {
	// Positions begin at 1; the map gives 0 if the user has none before.
	before, last, mixed := make([]int, len(batch)), map[string]int{}, map[string]bool{}
	for number, c := range batch {
		earlier := last[c.email]
		if earlier > 0 && batch[earlier-1].serial != c.serial {
			mixed[c.email] = true
		}
		before[number] = earlier
		last[c.email] = number + 1
	}
	roles := make([]int, len(batch))
	for email, position := range last {
		roles[position-1] = 1
		if mixed[email] {
			roles[position-1] = 2
		}
	}
	var b strings.Builder
	b.WriteString("EXECUTE record_check_ins (")
	array(&b, batch, func(_ int, c *checkIn) string { return quote(c.email) })
	array(&b, batch, func(_ int, c *checkIn) string { return c.ip })
	array(&b, batch, func(_ int, c *checkIn) string { return strconv.Itoa(c.port) })
	array(&b, batch, func(_ int, c *checkIn) string { return quote(c.issuer) })
	array(&b, batch, func(_ int, c *checkIn) string { return c.serial })
	array(&b, batch, func(n int, _ *checkIn) string { return strconv.Itoa(before[n]) })
	array(&b, batch, func(n int, _ *checkIn) string { return strconv.Itoa(roles[n]) })
	b.WriteString("false)")
	return b.String()
}

func array(b *strings.Builder, batch []*checkIn, element func(int, *checkIn) string) {
	b.WriteString("'{")
	for number, c := range batch {
		if number > 0 {
			b.WriteByte(',')
		}
		b.WriteString(element(number, c))
	}
	b.WriteString("}',")
}

var escapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "'", "''", "\x00", "")

func quote(text string) string {
	return `"` + escapes.Replace(text) + `"`
}

// execute runs statements by the simple protocol and returns the first row of the last result.
func execute(connection *pgconn.PgConn, sql string) ([]string, error) {
	results, err := connection.Exec(context.Background(), sql).ReadAll()
	if err != nil {
		return nil, err
	}
	rows := results[len(results)-1].Rows
	if len(rows) == 0 {
		return nil, fmt.Errorf("no row")
	}
	row := make([]string, len(rows[0]))
	for n, value := range rows[0] {
		row[n] = string(value)
	}
	return row, nil
}
