// An application with leader election: several copies run, one leads and works, and another one takes over when it dies.
//
//	election-go work NAME    runs a copy until all steps are done
//	election-go report       prints each step with the copy that did it
//
// ENDPOINTS has the addresses of the keyspace. On Kubernetes that is the name and namespace of a ShardKvKeyspace: orders.default:2379.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

const (
	steps    = 30
	election = "election-go/leader"
	done     = "election-go/done"
	step     = "election-go/step/"
	// A leader that dies is replaced after this many seconds.
	ttl = 2
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		log.Fatal("election-go: ", err)
	}
}

func run(ctx context.Context, args []string) error {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            strings.Split(os.Getenv("ENDPOINTS"), ","),
		DialTimeout:          5 * time.Second,
		DialKeepAliveTime:    5 * time.Second,
		DialKeepAliveTimeout: 2 * time.Second,
	})
	if err != nil {
		return err
	}
	defer client.Close()
	switch {
	case len(args) == 2 && args[0] == "work":
		for {
			finished, err := lead(ctx, client, args[1])
			if finished || ctx.Err() != nil {
				return ctx.Err()
			}
			// The lease is gone, or the store didn't answer for a while: begin again with a new session.
			log.Printf("%s: %v; candidate again", args[1], err)
			time.Sleep(200 * time.Millisecond)
		}
	case len(args) == 1 && args[0] == "report":
		return report(ctx, client)
	default:
		return errors.New("usage: election-go work NAME | election-go report")
	}
}

// Waits to be the leader, and works as long as the session lasts. Returns true once all steps are done.
func lead(ctx context.Context, client *clientv3.Client, name string) (bool, error) {
	session, err := concurrency.NewSession(client, concurrency.WithTTL(ttl), concurrency.WithContext(ctx))
	if err != nil {
		return false, err
	}
	defer session.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-session.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	candidate := concurrency.NewElection(session, election)
	if err := candidate.Campaign(ctx, name); err != nil {
		return false, err
	}
	log.Printf("%s leads", name)
	for {
		finished, err := work(ctx, client, candidate, name)
		if finished || err != nil {
			// Resigns, so that the next copy needs not wait for the end of the lease.
			resignation, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			return finished, errors.Join(err, candidate.Resign(resignation))
		}
	}
}

// Does the next step, in one transaction that changes nothing if another copy leads by now. So no step is done twice.
func work(ctx context.Context, client *clientv3.Client, leader *concurrency.Election, name string) (bool, error) {
	last, err := client.Get(ctx, done)
	if err != nil {
		return false, err
	}
	number := 1
	if len(last.Kvs) > 0 {
		before, err := strconv.Atoi(string(last.Kvs[0].Value))
		if err != nil {
			return false, err
		}
		number = before + 1
	}
	if number > steps {
		return true, nil
	}
	time.Sleep(100 * time.Millisecond) // The work.
	key := fmt.Sprintf("%s%03d", step, number)
	answer, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(leader.Key()), "=", leader.Rev()),
			clientv3.Compare(clientv3.Version(key), "=", 0)).
		Then(clientv3.OpPut(key, name), clientv3.OpPut(done, strconv.Itoa(number))).
		Commit()
	if err != nil {
		// The outcome may be unknown. The next leader reads what was done.
		return false, err
	}
	if !answer.Succeeded {
		return false, errors.New("another copy leads")
	}
	log.Printf("%s did step %d", name, number)
	return false, nil
}

func report(ctx context.Context, client *clientv3.Client) error {
	all, err := client.Get(ctx, step, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	for _, pair := range all.Kvs {
		fmt.Printf("%s %s\n", strings.TrimPrefix(string(pair.Key), step), pair.Value)
	}
	return nil
}
