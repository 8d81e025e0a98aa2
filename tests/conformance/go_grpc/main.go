// A client of google.golang.org/grpc against the server of echoes: raw bytes, no generated code.
// Usage: go_grpc ADDRESS [CA CERT KEY]; prints a line for each check and exits with 1 if one fails.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte{}, data...)
	return nil
}
func (rawCodec) Name() string { return "raw" }

const prefix = "/test.Echo/"

var connection *grpc.ClientConn

func call(ctx context.Context, name string, message []byte, options ...grpc.CallOption) ([]byte, error) {
	var reply []byte
	err := connection.Invoke(ctx, prefix+name, &message, &reply, options...)
	return reply, err
}

func within(s float64) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Duration(s*float64(time.Second)))
}

func same(got, want []byte, err error) error {
	if err == nil && !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes came back, not the %d that were sent", len(got), len(want))
	}
	return err
}

func expect(err error, code codes.Code, text string) error {
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), text) {
		return fmt.Errorf("not %v %q but %v", code, text, err)
	}
	return nil
}

func unary() error {
	for _, size := range []int{0, 1, 5, 16379, 16384, 65535, 1 << 20} {
		ctx, done := within(20)
		message := bytes.Repeat([]byte{7}, size)
		reply, err := call(ctx, "Unary", message)
		done()
		if err := same(reply, message, err); err != nil {
			return err
		}
	}
	return nil
}

func large() error {
	ctx, done := within(60)
	defer done()
	message := bytes.Repeat([]byte("0123456789abcdef"), 4<<20)
	reply, err := call(ctx, "Unary", message)
	return same(reply, message, err)
}

func manyAtOnce() error {
	var group sync.WaitGroup
	failures := make(chan error, 500)
	for i := range 500 {
		group.Add(1)
		go func() {
			defer group.Done()
			ctx, done := within(30)
			defer done()
			message := []byte(fmt.Sprint("message ", i))
			reply, err := call(ctx, "Unary", message)
			failures <- same(reply, message, err)
		}()
	}
	group.Wait()
	close(failures)
	for err := range failures {
		if err != nil {
			return err
		}
	}
	return nil
}

func compressed() error {
	ctx, done := within(20)
	defer done()
	message := bytes.Repeat([]byte("compress me "), 50000)
	reply, err := call(ctx, "Unary", message, grpc.UseCompressor(gzip.Name))
	return same(reply, message, err)
}

func fields() error {
	ctx, done := within(20)
	defer done()
	ctx = metadata.AppendToOutgoingContext(ctx, "plain", "a", "plain", "b", "raw-bin", "\x00\xff")
	var trailer metadata.MD
	reply, err := call(ctx, "Metadata", nil, grpc.Trailer(&trailer))
	if err != nil {
		return err
	}
	var told map[string]string
	if err := json.Unmarshal(reply, &told); err != nil {
		return err
	}
	if told["plain"] != "a,b" || told["raw-bin"] != "00ff" || len(trailer["seen"]) != 1 {
		return fmt.Errorf("metadata %v, trailers %v", told, trailer)
	}
	return nil
}

func errors() error {
	ctx, done := within(20)
	defer done()
	ctx = metadata.AppendToOutgoingContext(ctx, "code", "NOT_FOUND")
	_, err := call(ctx, "Fail", []byte("100% Grüße\n"))
	if err := expect(err, codes.NotFound, "100% Grüße\n"); err != nil {
		return err
	}
	_, err = call(ctx, "None", nil)
	return expect(err, codes.Unimplemented, "unknown method /test.Echo/None")
}

func cancelled(before int) error {
	for range 200 {
		ctx, done := within(20)
		reply, err := call(ctx, "Cancelled", nil)
		done()
		if err != nil {
			return err
		}
		if string(reply) == fmt.Sprint(before) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("the method was not told")
}

func deadline() error {
	ctx, done := within(0.1)
	defer done()
	_, err := call(ctx, "Hold", nil)
	if err := expect(err, codes.DeadlineExceeded, ""); err != nil {
		return err
	}
	return cancelled(1)
}

func cancellation() error {
	ctx, done := within(20)
	time.AfterFunc(50*time.Millisecond, done)
	_, err := call(ctx, "Hold", nil)
	if err := expect(err, codes.Canceled, ""); err != nil {
		return err
	}
	return cancelled(2)
}

func stream() error {
	ctx, done := within(30)
	defer done()
	description := grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	chat, err := connection.NewStream(ctx, &description, prefix+"Chat")
	if err != nil {
		return err
	}
	for i := range 200 {
		message := bytes.Repeat([]byte{byte(i)}, i*997)
		if err := chat.SendMsg(&message); err != nil {
			return err
		}
		var reply []byte
		if err := same(reply, message, chat.RecvMsg(&reply)); err != nil && len(reply) != len(message) {
			return err
		}
	}
	if err := chat.CloseSend(); err != nil {
		return err
	}
	var rest []byte
	if err := chat.RecvMsg(&rest); err != io.EOF {
		return fmt.Errorf("no end: %v", err)
	}
	return nil
}

func slowReader() error {
	ctx, done := within(30)
	defer done()
	description := grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	chat, err := connection.NewStream(ctx, &description, prefix+"Chat")
	if err != nil {
		return err
	}
	const count, size = 200, 300_000
	failed := make(chan error, 1)
	go func() {
		message := make([]byte, size)
		for range count {
			if err := chat.SendMsg(&message); err != nil {
				failed <- err
				return
			}
		}
		failed <- chat.CloseSend()
	}()
	time.Sleep(300 * time.Millisecond)
	for range count {
		var reply []byte
		if err := chat.RecvMsg(&reply); err != nil {
			return err
		}
		if len(reply) != size {
			return fmt.Errorf("%d bytes came back", len(reply))
		}
	}
	return <-failed
}

func credentialsOf(files []string) (credentials.TransportCredentials, error) {
	if len(files) == 0 {
		return insecure.NewCredentials(), nil
	}
	pem, err := os.ReadFile(files[0])
	if err != nil {
		return nil, err
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(pem)
	own, err := tls.LoadX509KeyPair(files[1], files[2])
	if err != nil {
		return nil, err
	}
	return credentials.NewTLS(&tls.Config{RootCAs: authorities, Certificates: []tls.Certificate{own}}), nil
}

func main() {
	encoding.RegisterCodec(rawCodec{})
	secret, err := credentialsOf(os.Args[2:])
	if err == nil {
		connection, err = grpc.NewClient(
			os.Args[1],
			grpc.WithTransportCredentials(secret),
			grpc.WithDefaultCallOptions(
				grpc.ForceCodec(rawCodec{}), grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30),
			),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second}),
		)
	}
	if err != nil {
		fmt.Println("FAILED connection:", err)
		os.Exit(1)
	}
	defer connection.Close()
	failed := false
	for _, check := range []struct {
		name string
		run  func() error
	}{
		{"unary", unary}, {"large", large}, {"many at once", manyAtOnce},
		{"compressed", compressed}, {"metadata", fields}, {"errors", errors},
		{"deadline", deadline}, {"cancellation", cancellation}, {"stream", stream},
		{"slow reader", slowReader},
	} {
		if err := check.run(); err != nil {
			failed = true
			fmt.Printf("FAILED %s: %v\n", check.name, err)
		} else {
			fmt.Println("ok", check.name)
		}
	}
	if failed {
		os.Exit(1)
	}
}
