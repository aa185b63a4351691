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
	maxRepeated = 8
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
	rows, err := execute(connection, session+setting("PREPARE")+"; SELECT log_id FROM head")
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
	announced  []string // the newest events, as they are repeated
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

// announce sends as many events a datagram as fit, and repeats the last ones before it, as
// docs/protocol.md says.
func (w *writer) announce(batch []*checkIn, base int64, at string, events map[string]string) {
	opening := fmt.Sprintf(`{"v":2,"log":"%s","sent":"%s","head":%d,"at":"%s","first":`,
		w.logID, time.Now().UTC().Format(timestamp), base+int64(len(batch)), at)
	entries := make([]string, len(batch))
	for number, c := range batch {
		if event, special := events[strconv.Itoa(number+1)]; special {
			entries[number] = fmt.Sprintf(`{"event":"%s","email":"%s","client_ip":"%s","client_port":%d}`,
				event, c.email, c.ip, c.port)
		} else {
			entries[number] = fmt.Sprintf(`["%s","%s",%d]`, c.email, c.ip, c.port)
		}
	}
	for begin := 0; begin < len(entries); {
		first := base + int64(begin) + 1
		datagram := append(make([]byte, 0, maxDatagram), opening...)
		datagram = fmt.Appendf(datagram, `%d,"events":[%s`, first, entries[begin])
		end := begin + 1
		for end < len(entries) && len(datagram)+1+len(entries[end])+2 <= maxDatagram-signatureRoom {
			datagram = append(append(datagram, ','), entries[end]...)
			end++
		}
		w.announcer.send(w.signer.close(w.repeat(append(datagram, ']'))))
		for number := max(begin, end-maxRepeated); number < end; number++ {
			w.remember(fmt.Sprintf(`[%d,"%s",%s]`, base+int64(number)+1, at, entries[number]))
		}
		begin = end
	}
}

// remember keeps the newest announced events, the newest first. Without heartbeats, each is in no
// more than the next maxRepeated datagrams by itself.
func (w *writer) remember(event string) {
	w.announced = append([]string{event}, w.announced[:min(len(w.announced), maxRepeated-1)]...)
}

// repeat adds as many of the events announced before as fit.
func (w *writer) repeat(datagram []byte) []byte {
	room := maxDatagram - signatureRoom - len(datagram) - len(`,"repeat":[]}`)
	fitting := 0
	for _, event := range w.announced {
		if room -= len(event) + 1; room < -1 {
			break
		}
		fitting++
	}
	if fitting == 0 {
		return datagram
	}
	return fmt.Appendf(datagram, `,"repeat":[%s]`, strings.Join(w.announced[:fitting], ","))
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

// close signs all that is before the signature.
func (s signer) close(datagram []byte) []byte {
	signed := fmt.Appendf(datagram, `,"kid":"%s"`, s.kid)
	signature := base64.RawURLEncoding.EncodeToString(ed25519.Sign(s.key, signed))
	return fmt.Appendf(signed, `,"sig":"%s"}`, signature)
}

// executeRecord returns the EXECUTE statement with its arrays as literals, as batch_statements.py
// does.
func executeRecord(batch []*checkIn) string {
	var b strings.Builder
	distinct := map[string]bool{}
	for _, c := range batch {
		distinct[c.email] = true
	}
	if len(distinct) == len(batch) {
		b.WriteString("EXECUTE record_distinct (")
		columns(&b, batch)
		b.WriteString(")")
		return b.String()
	}
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
	b.WriteString("EXECUTE record_any (")
	columns(&b, batch)
	b.WriteByte(',')
	array(&b, batch, func(n int, _ *checkIn) string { return strconv.Itoa(before[n]) })
	b.WriteByte(',')
	array(&b, batch, func(n int, _ *checkIn) string { return strconv.Itoa(roles[n]) })
	b.WriteString(",false)")
	return b.String()
}

// columns writes the arrays that both statements take.
func columns(b *strings.Builder, batch []*checkIn) {
	for number, element := range []func(int, *checkIn) string{
		func(_ int, c *checkIn) string { return quote(c.email) },
		func(_ int, c *checkIn) string { return c.ip },
		func(_ int, c *checkIn) string { return strconv.Itoa(c.port) },
		func(_ int, c *checkIn) string { return quote(c.issuer) },
		func(_ int, c *checkIn) string { return c.serial },
	} {
		if number > 0 {
			b.WriteByte(',')
		}
		array(b, batch, element)
	}
}

func array(b *strings.Builder, batch []*checkIn, element func(int, *checkIn) string) {
	b.WriteString("'{")
	for number, c := range batch {
		if number > 0 {
			b.WriteByte(',')
		}
		b.WriteString(element(number, c))
	}
	b.WriteString("}'")
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
