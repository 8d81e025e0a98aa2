import io.grpc.CallOptions;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;

/**
 * A client of grpc-java against the server of echoes: raw bytes, no generated code.
 *
 * <p>Usage: EchoClient ADDRESS [CA CERT KEY]; prints a line for each check, status 1 if one fails.
 */
public final class EchoClient {
  private interface Check {
    void run() throws Exception;
  }

  private static final class Raw implements MethodDescriptor.Marshaller<byte[]> {
    @Override
    public InputStream stream(byte[] value) {
      return new ByteArrayInputStream(value);
    }

    @Override
    public byte[] parse(InputStream stream) {
      try {
        return stream.readAllBytes();
      } catch (IOException error) {
        throw new UncheckedIOException(error);
      }
    }
  }

  private static final Raw RAW = new Raw();
  private static ManagedChannel channel;

  private static MethodDescriptor<byte[], byte[]> method(
      String name, MethodDescriptor.MethodType type) {
    return MethodDescriptor.newBuilder(RAW, RAW)
        .setType(type)
        .setFullMethodName("test.Echo/" + name)
        .build();
  }

  private static MethodDescriptor<byte[], byte[]> unary(String name) {
    return method(name, MethodDescriptor.MethodType.UNARY);
  }

  private static CallOptions within(long ms) {
    return CallOptions.DEFAULT.withDeadlineAfter(ms, TimeUnit.MILLISECONDS);
  }

  private static byte[] call(String name, byte[] message, CallOptions options) {
    return ClientCalls.blockingUnaryCall(channel, unary(name), options, message);
  }

  private static void same(byte[] got, byte[] want) {
    if (!Arrays.equals(got, want)) {
      throw new AssertionError(got.length + " bytes came back, not the " + want.length + " sent");
    }
  }

  private static void fails(Status.Code code, String text, Runnable work) {
    try {
      work.run();
    } catch (StatusRuntimeException error) {
      Status status = error.getStatus();
      String told = String.valueOf(status.getDescription());
      if (status.getCode() != code || !told.contains(text)) {
        throw new AssertionError("not " + code + " '" + text + "' but " + status);
      }
      return;
    }
    throw new AssertionError("it did not fail");
  }

  private static byte[] pattern(int size) {
    byte[] message = new byte[size];
    for (int i = 0; i < size; i++) {
      message[i] = (byte) (i * 31);
    }
    return message;
  }

  private static void sizes() {
    for (int size : new int[] {0, 1, 5, 16379, 16384, 65535, 1 << 20}) {
      byte[] message = pattern(size);
      same(call("Unary", message, within(20_000)), message);
    }
  }

  private static void large() {
    byte[] message = pattern(48 << 20);
    same(call("Unary", message, within(60_000)), message);
  }

  private static void manyAtOnce() throws Exception {
    List<Future<byte[]>> calls = new ArrayList<>();
    for (int i = 0; i < 500; i++) {
      byte[] message = ("message " + i).getBytes(StandardCharsets.UTF_8);
      calls.add(
          ClientCalls.futureUnaryCall(
              channel.newCall(unary("Unary"), within(30_000)), message));
    }
    for (int i = 0; i < 500; i++) {
      same(calls.get(i).get(), ("message " + i).getBytes(StandardCharsets.UTF_8));
    }
  }

  private static void compressed() {
    byte[] message = new byte[600_000];
    same(call("Unary", message, within(20_000).withCompression("gzip")), message);
  }

  private static void metadata() {
    Metadata fields = new Metadata();
    Metadata.Key<String> plain = Metadata.Key.of("plain", Metadata.ASCII_STRING_MARSHALLER);
    fields.put(plain, "a");
    fields.put(plain, "b");
    fields.put(
        Metadata.Key.of("raw-bin", Metadata.BINARY_BYTE_MARSHALLER), new byte[] {0, (byte) 255});
    byte[] reply =
        ClientCalls.blockingUnaryCall(
            io.grpc.ClientInterceptors.intercept(
                channel, MetadataUtils.newAttachHeadersInterceptor(fields)),
            unary("Metadata"),
            within(20_000),
            new byte[0]);
    String told = new String(reply, StandardCharsets.UTF_8);
    if (!told.contains("\"plain\": \"a,b\"") || !told.contains("\"raw-bin\": \"00ff\"")) {
      throw new AssertionError(told);
    }
  }

  private static void errors() {
    Metadata fields = new Metadata();
    fields.put(Metadata.Key.of("code", Metadata.ASCII_STRING_MARSHALLER), "NOT_FOUND");
    String text = "100% Gr\u00fc\u00dfe\n";
    fails(
        Status.Code.NOT_FOUND,
        text,
        () ->
            ClientCalls.blockingUnaryCall(
                io.grpc.ClientInterceptors.intercept(
                    channel, MetadataUtils.newAttachHeadersInterceptor(fields)),
                unary("Fail"),
                within(20_000),
                text.getBytes(StandardCharsets.UTF_8)));
    fails(
        Status.Code.UNIMPLEMENTED,
        "unknown method /test.Echo/None",
        () -> call("None", new byte[0], within(20_000)));
  }

  private static void cancelled(int times) throws InterruptedException {
    for (int i = 0; i < 200; i++) {
      String told =
          new String(call("Cancelled", new byte[0], within(20_000)), StandardCharsets.UTF_8);
      if (told.equals(Integer.toString(times))) {
        return;
      }
      Thread.sleep(20);
    }
    throw new AssertionError("the method was not told");
  }

  private static void deadline() throws Exception {
    fails(
        Status.Code.DEADLINE_EXCEEDED, "", () -> call("Hold", new byte[0], within(100)));
    cancelled(1);
  }

  private static void cancellation() throws Exception {
    Future<byte[]> held =
        ClientCalls.futureUnaryCall(
            channel.newCall(unary("Hold"), within(20_000)), new byte[0]);
    Thread.sleep(50);
    held.cancel(true);
    try {
      held.get();
      throw new AssertionError("it was answered");
    } catch (java.util.concurrent.CancellationException expected) {
      cancelled(2);
    } catch (ExecutionException error) {
      throw new AssertionError(error);
    }
  }

  private static void stream() throws Exception {
    int count = 300;
    List<byte[]> replies = new ArrayList<>();
    List<Throwable> failures = new ArrayList<>();
    CountDownLatch end = new CountDownLatch(1);
    StreamObserver<byte[]> chat =
        ClientCalls.asyncBidiStreamingCall(
            channel.newCall(
                method("Chat", MethodDescriptor.MethodType.BIDI_STREAMING), within(60_000)),
            new StreamObserver<byte[]>() {
              @Override
              public void onNext(byte[] reply) {
                replies.add(reply);
              }

              @Override
              public void onError(Throwable error) {
                failures.add(error);
                end.countDown();
              }

              @Override
              public void onCompleted() {
                end.countDown();
              }
            });
    for (int i = 0; i < count; i++) {
      chat.onNext(pattern(i * 997));
    }
    chat.onCompleted();
    if (!end.await(60, TimeUnit.SECONDS) || !failures.isEmpty() || replies.size() != count) {
      throw new AssertionError(replies.size() + " replies, " + failures);
    }
    for (int i = 0; i < count; i++) {
      same(replies.get(i), pattern(i * 997));
    }
  }

  private static boolean passes(String name, Check check) {
    try {
      check.run();
      System.out.println("ok " + name);
      return true;
    } catch (Exception | AssertionError error) {
      System.out.println("FAILED " + name + ": " + error);
      return false;
    }
  }

  public static void main(String[] arguments) throws Exception {
    ChannelCredentials credentials = InsecureChannelCredentials.create();
    if (arguments.length > 1) {
      credentials =
          TlsChannelCredentials.newBuilder()
              .trustManager(new File(arguments[1]))
              .keyManager(new File(arguments[2]), new File(arguments[3]))
              .build();
    }
    channel =
        Grpc.newChannelBuilder(arguments[0], credentials).maxInboundMessageSize(1 << 30).build();
    boolean ok = passes("unary", EchoClient::sizes);
    ok &= passes("large", EchoClient::large);
    ok &= passes("many at once", EchoClient::manyAtOnce);
    ok &= passes("compressed", EchoClient::compressed);
    ok &= passes("metadata", EchoClient::metadata);
    ok &= passes("errors", EchoClient::errors);
    ok &= passes("deadline", EchoClient::deadline);
    ok &= passes("cancellation", EchoClient::cancellation);
    ok &= passes("stream", EchoClient::stream);
    channel.shutdown().awaitTermination(10, TimeUnit.SECONDS);
    System.exit(ok ? 0 : 1);
  }

  private EchoClient() {}
}
