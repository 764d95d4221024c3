// Command histories compares the state machine of keyspaces with a real etcd: it sends random histories of calls to etcd's JSON
// gateway, each to a fresh etcd, and compares every answer and event with what the keyspace answered.
//
//	go run ./histories ETCD HISTORY SEEDS WRITES
//
// ETCD is etcd's program, HISTORY the example of node/keyspace that prints a history. Exits with 1 at the first history that
// differs, and prints the command that prints it again.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"time"

	"shardkv.dev/ci/etcd/process"
)

// The most differences of a history that are printed.
const maxPrinted = 5

var client = &http.Client{Timeout: 30 * time.Second}

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: histories ETCD HISTORY SEEDS WRITES")
		os.Exit(2)
	}
	seeds, err := strconv.Atoi(os.Args[3])
	if err != nil || seeds < 1 {
		fmt.Fprintf(os.Stderr, "histories: SEEDS must be a positive whole number, not %q\n", os.Args[3])
		os.Exit(2)
	}
	total := 0
	for seed := range seeds {
		calls, err := compare(os.Args[1], os.Args[2], strconv.Itoa(seed), os.Args[4])
		if err != nil {
			fmt.Fprintf(os.Stderr, "histories: history %d: %v\n  %s %d %s\n", seed, err, os.Args[2], seed, os.Args[4])
			os.Exit(1)
		}
		total += calls
	}
	fmt.Printf("histories: %d histories with %d calls, every answer and event equal\n", seeds, total)
}

// compare replays one history and returns the number of its calls.
func compare(program, history, seed, writes string) (int, error) {
	lines, err := exec.Command(history, seed, writes).Output()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", history, err)
	}
	etcd, err := process.Etcd(program)
	if err != nil {
		return 0, err
	}
	defer etcd.Stop()
	url := "http://" + etcd.Addresses[0]
	calls, differences := 0, 0
	scanner := bufio.NewScanner(bytes.NewReader(lines))
	scanner.Buffer(nil, 64<<20)
	for scanner.Scan() {
		call := strings.Split(scanner.Text(), "\t")
		if len(call) != 3 {
			return calls, fmt.Errorf("not a call: %q", scanner.Text())
		}
		calls++
		ours, err := decode([]byte(call[2]))
		if err != nil {
			return calls, err
		}
		theirs, err := ask(url, call[0], call[1], ours)
		if err != nil {
			return calls, fmt.Errorf("%s %s: %w", call[0], call[1], err)
		}
		if reflect.DeepEqual(normal(ours), normal(theirs)) {
			continue
		}
		if differences++; differences <= maxPrinted {
			fmt.Fprintf(os.Stderr, "%s %s\n  etcd: %v\n  ours: %v\n", call[0], call[1], normal(theirs), normal(ours))
		}
	}
	if err := scanner.Err(); err != nil {
		return calls, err
	}
	// A history ends with its watch, so a truncated one is not taken for a short one.
	if calls < 2 {
		return calls, fmt.Errorf("the history has only %d calls", calls)
	}
	if differences > 0 {
		return calls, fmt.Errorf("%d of %d answers differ", differences, calls)
	}
	return calls, nil
}

// ask sends one call and returns etcd's answer. A watch answers as many events as ours.
func ask(url, path, body string, ours any) (any, error) {
	answer, err := client.Post(url+"/v3/"+path, "application/json", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if path == "watch" {
		return readEvents(answer.Body, ours)
	}
	read, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	theirs, err := decode(read)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		refusal, _ := theirs.(map[string]any)
		return map[string]any{"error": refusal["message"]}, nil
	}
	return theirs, nil
}

func readEvents(stream io.Reader, ours any) (any, error) {
	expected, _ := ours.([]any)
	events := []any{}
	decoder := json.NewDecoder(stream)
	decoder.UseNumber()
	for len(events) < len(expected) {
		var message struct {
			Result struct {
				Events   []any
				Canceled bool
			}
		}
		if err := decoder.Decode(&message); err != nil {
			return nil, err
		}
		if message.Result.Canceled {
			return nil, fmt.Errorf("etcd canceled the watch")
		}
		events = append(events, message.Result.Events...)
	}
	return events, nil
}

func decode(text []byte) (any, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var value any
	err := decoder.Decode(&value)
	return value, err
}

// normal removes what the gateway may leave out, and what belongs to the cluster. It writes numbers of 64 bits as texts, as the
// gateway does.
func normal(value any) any {
	switch value := value.(type) {
	case map[string]any:
		fields := map[string]any{}
		for name, field := range value {
			field = normal(field)
			belongs := name == "cluster_id" || name == "member_id" || name == "raft_term"
			if !belongs && field != nil {
				fields[name] = field
			}
		}
		if len(fields) == 0 {
			return nil
		}
		return fields
	case []any:
		var all []any
		for _, element := range value {
			all = append(all, normal(element))
		}
		if len(all) == 0 {
			return nil
		}
		return all
	case json.Number:
		return normal(value.String())
	case string:
		if value == "" || value == "0" || value == "PUT" {
			return nil
		}
		return value
	case bool:
		if !value {
			return nil
		}
		return value
	default:
		return value
	}
}
